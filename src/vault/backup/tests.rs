use super::*;
use crate::id::Head;
use crate::secret::UnsealKey;

fn sealed(keyring: &Keyring, seal: &SealRow, plain: &[u8]) -> (Beginning, Vec<u8>) {
    let header = Header::new(seal, keyring.current(), Head::default(), UnixMillis(7), "here").unwrap();
    let beginning = Beginning::of(header).unwrap();
    let mut out = beginning.bytes().to_vec();
    let mut sealer = Sealer::new(keyring, &beginning).unwrap();
    for part in plain.chunks(1000) {
        sealer.push(part, &mut out).unwrap();
    }
    sealer.finish(&mut out).unwrap();
    (beginning, out)
}

fn vault() -> (Keyring, SealRow) {
    let key = UnsealKey::from_slice(&[3; 32]).unwrap();
    let keyring = Keyring::generate(&key).unwrap();
    let seal = SealRow::seal(&VaultId::from_random(1), 1, Method::KeyFile, &keyring).unwrap();
    (keyring, seal)
}

fn opened(keyring: &Keyring, mut file: &[u8], length: usize) -> Result<Vec<u8>, FileError> {
    let beginning = Beginning::read(&mut file)?;
    let mut opener = Opener::new(keyring, &beginning, file)?;
    let mut out = vec![0; length];
    opener.fill(&mut out)?;
    if opener.is_at_end()? { Ok(out) } else { Err(FileError::Unknown("there is more".to_owned())) }
}

#[test]
fn what_goes_in_comes_out_whatever_its_length() {
    let (keyring, seal) = vault();
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
        let plain: Vec<u8> = (0..length).map(|nth| u8::try_from(nth % 251).unwrap()).collect();
        let (beginning, file) = sealed(&keyring, &seal, &plain);
        let chunks = length.div_ceil(CHUNK).max(1);
        assert_eq!(file.len(), beginning.bytes().len() + length + chunks * TAG, "{length}");
        assert_eq!(opened(&keyring, &file, length).unwrap(), plain, "{length}");
    }
}

#[test]
fn every_flipped_bit_is_found_and_every_cut() {
    let (keyring, seal) = vault();
    let plain = vec![9; 300];
    let (_, file) = sealed(&keyring, &seal, &plain);
    for bit in 0..file.len() * 8 {
        let mut changed = file.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(opened(&keyring, &changed, plain.len()).is_err(), "bit {bit}");
    }
    for cut in 0..file.len() {
        assert!(opened(&keyring, &file[..cut], plain.len()).is_err(), "cut at {cut}");
    }
    assert!(opened(&keyring, &[file.as_slice(), &[0]].concat(), plain.len()).is_err(), "a byte more");
    assert!(opened(&keyring, &[file.as_slice(), &file].concat(), plain.len()).is_err(), "twice");
}

#[test]
fn chunks_can_not_be_cut_off_swapped_repeated_left_out_or_taken_from_another_file() {
    let (keyring, seal) = vault();
    let plain = vec![9; 4 * CHUNK];
    let (beginning, file) = sealed(&keyring, &seal, &plain);
    let (head, body) = file.split_at(beginning.bytes().len());
    let chunks: Vec<&[u8]> = body.chunks(CHUNK + TAG).collect();
    let with = |order: &[usize]| [head, &order.iter().map(|nth| chunks[*nth]).collect::<Vec<_>>().concat()].concat();
    assert!(opened(&keyring, &with(&[0, 1, 2, 3]), plain.len()).is_ok());
    for (order, length) in
        [(&[1_usize, 0, 2, 3][..], 4), (&[0, 0, 1, 2, 3], 5), (&[0, 2, 3], 3), (&[3], 1), (&[0, 1, 2, 3, 3], 5)]
    {
        assert!(matches!(opened(&keyring, &with(order), length * CHUNK), Err(FileError::Changed { .. })), "{order:?}");
    }
    for cut in 1..4 {
        let order: Vec<usize> = (0..cut).collect();
        let found = opened(&keyring, &with(&order), cut * CHUNK);
        assert!(matches!(found, Err(FileError::CutOff(at)) if at as usize == with(&order).len()), "{cut}");
    }
    assert!(matches!(opened(&keyring, head, 1), Err(FileError::CutOff(_))));
    // The same plain text in another file of the same vault has another key.
    let (_, other) = sealed(&keyring, &seal, &plain);
    let theirs: Vec<&[u8]> = other[head.len()..].chunks(CHUNK + TAG).collect();
    let mixed = [head, chunks[0], theirs[1], chunks[2], chunks[3]].concat();
    assert!(opened(&keyring, &mixed, plain.len()).is_err());
}

#[test]
fn a_file_that_is_none_or_of_a_newer_release_is_named() {
    let (keyring, seal) = vault();
    let (_, mut file) = sealed(&keyring, &seal, b"x");
    assert!(matches!(opened(&keyring, b"hunter2", 1), Err(FileError::NotABackup(_))));
    assert!(matches!(opened(&keyring, &[7; 4096], 1), Err(FileError::NotABackup(_))));
    file[19] = 2;
    assert!(matches!(opened(&keyring, &file, 1), Err(FileError::Newer(2))));
    let other = Keyring::generate(&UnsealKey::from_slice(&[4; 32]).unwrap()).unwrap();
    file[19] = 1;
    assert!(matches!(opened(&other, &file, 1), Err(FileError::Changed { .. })), "the root key of another vault");
}
