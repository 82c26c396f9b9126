//! Bytes that are no frame are an error inside them; a frame, encoded again, is the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tailrace_outbox::frame::{Frame, encode_parts};

fuzz_target!(|bytes: &[u8]| match Frame::decode(bytes) {
    Ok(frame) => {
        let mut again = Vec::new();
        let (attributes, headers) = (frame.attributes(), frame.headers());
        encode_parts(&mut again, &frame.parts(), attributes.iter(), headers.iter());
        assert_eq!(again, bytes);
        // Any answer will do; a panic would not.
        frame.validate().ok();
    }
    Err(error) => assert!(error.at() <= bytes.len(), "{error}"),
});
