//! Runs the target `pgoutput` of `tailrace_cdc_relay::fuzzing`, which says what its bytes are.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tailrace_cdc_relay::fuzzing::pgoutput(bytes));
