//! The hash of the server's certificate, to which a log-in is bound.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

use super::reader::{Fault, Reader};

/// DER's tag of a SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// DER's tag of an OBJECT IDENTIFIER.
const OBJECT_IDENTIFIER: u8 = 0x06;

/// The object identifiers of RSA signatures without their last part (PKCS #1, RFC 8017: 1.2.840.113549.1.1).
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// Those of ECDSA with one of the SHA-2 hashes (RFC 5758: 1.2.840.10045.4.3).
const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
/// ECDSA with SHA-1 (1.2.840.10045.4.1).
const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];

/// The data of the channel binding `tls-server-end-point` (RFC 5929, section 4.1): the
/// certificate, hashed as it was for its signature, but by SHA-256 in place of MD5 and SHA-1.
///
/// `None` where the name of the signature names no hash (Ed25519, RSA-PSS) or one that is not at
/// hand: there log-in goes without.
pub(super) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let signature = signature_algorithm(certificate).ok()?;
    let algorithm = hash_of(signature)?;
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

fn hash_of(signature: &[u8]) -> Option<&'static Algorithm> {
    if signature == ECDSA_SHA1 {
        return Some(&SHA256);
    }
    let (last, family) = signature.split_last()?;
    match (family, last) {
        // MD5, SHA-1, SHA-256; SHA-256.
        (RSA, 4 | 5 | 11) | (ECDSA_SHA2, 2) => Some(&SHA256),
        (RSA, 12) | (ECDSA_SHA2, 3) => Some(&SHA384),
        (RSA, 13) | (ECDSA_SHA2, 4) => Some(&SHA512),
        _ => None,
    }
}

/// The object identifier of the algorithm of a certificate's signature: the second element of the
/// certificate (RFC 5280, section 4.1).
fn signature_algorithm(certificate: &[u8]) -> Result<&[u8], Fault> {
    let mut certificate = Reader::new(element(&mut Reader::new(certificate), SEQUENCE)?);
    element(&mut certificate, SEQUENCE)?;
    let mut algorithm = Reader::new(element(&mut certificate, SEQUENCE)?);
    element(&mut algorithm, OBJECT_IDENTIFIER)
}

/// The content of the next element of DER, which must be of this kind.
fn element<'a>(reader: &mut Reader<'a>, tag: u8) -> Result<&'a [u8], Fault> {
    let fault = reader.fault("another element than expected");
    if reader.u8()? != tag {
        return Err(fault);
    }
    let first = reader.u8()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        // The length's own length; no certificate needs more than four bytes.
        let count = usize::from(first & 0x7f);
        if count > 4 {
            return Err(fault);
        }
        length = 0;
        for _ in 0..count {
            length = length << 8 | usize::from(reader.u8()?);
        }
    }
    reader.take(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
        SignatureAlgorithm,
    };
    use ring::digest::{SHA256, SHA384, digest};

    use super::{end_point_hash, hash_of};

    fn certificate(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(["db".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_is_hashed_as_for_its_signature() {
        for (algorithm, hash) in
            [(&PKCS_ECDSA_P256_SHA256, &SHA256), (&PKCS_ECDSA_P384_SHA384, &SHA384)]
        {
            let certificate = certificate(algorithm);
            let expected = digest(hash, &certificate).as_ref().to_vec();
            assert_eq!(end_point_hash(&certificate), Some(expected));
        }
        assert_eq!(end_point_hash(&certificate(&PKCS_ED25519)), None);
    }

    /// The last byte of a signature's name, and the bits of the hash.
    #[test]
    fn weak_hashes_are_replaced() {
        let rsa = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
        for (last, bytes) in [
            (4, Some(32)),
            (5, Some(32)),
            (10, None),
            (11, Some(32)),
            (12, Some(48)),
            (13, Some(64)),
        ] {
            let found = hash_of(&[&rsa[..], &[last]].concat()).map(|hash| hash.output_len());
            assert_eq!(found, bytes, "{last}");
        }
        let ecdsa_with_sha1 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
        assert_eq!(hash_of(&ecdsa_with_sha1).unwrap().output_len(), 32);
        assert!(hash_of(b"").is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), cut in 0_usize..300) {
            end_point_hash(&bytes);
            let whole = certificate(&PKCS_ECDSA_P256_SHA256);
            let cut = &whole[..cut.min(whole.len() - 1)];
            prop_assert_eq!(end_point_hash(cut), None);
        }
    }
}
