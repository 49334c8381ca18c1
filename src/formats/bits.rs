//! Codes of a few bits side by side: the first in the lowest bits, over the ends of bytes, little end first.

/// Bytes of so many codes, in whole units.
pub fn row_bytes(count: usize, bits: u32, unit_bytes: usize) -> usize {
    (count * bits as usize).div_ceil(8 * unit_bytes) * unit_bytes
}

/// Packs codes into zeroed bytes.
pub fn pack(codes: impl Iterator<Item = u8>, bits: u32, out: &mut [u8]) {
    for (i, code) in codes.enumerate() {
        let (byte, shift) = (i * bits as usize / 8, i * bits as usize % 8);
        let wide = u16::from(code) << shift;
        out[byte] |= wide as u8;
        if wide > 0xff {
            out[byte + 1] |= (wide >> 8) as u8;
        }
    }
}

/// Unpacks so many codes; there must be bytes for all.
pub fn unpack(bytes: &[u8], bits: u32, count: usize) -> impl Iterator<Item = u8> {
    let mask = ((1u16 << bits) - 1) as u8;
    (0..count).map(move |i| {
        let (byte, shift) = (i * bits as usize / 8, i * bits as usize % 8);
        let next = bytes.get(byte + 1).copied().unwrap_or(0);
        (u16::from_le_bytes([bytes[byte], next]) >> shift) as u8 & mask
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_all_widths_come_back_and_lie_where_they_should() {
        for bits in 1..=8 {
            let codes: Vec<u8> = (0..77).map(|i| (i * 37 % (1u32 << bits)) as u8).collect();
            let mut bytes = vec![0; row_bytes(codes.len(), bits, 4)];
            pack(codes.iter().copied(), bits, &mut bytes);
            assert_eq!(unpack(&bytes, bits, codes.len()).collect::<Vec<_>>(), codes);
            // As one long number, code i is its bits from i * bits on.
            let bit = |i: usize| bytes[i / 8] >> (i % 8) & 1;
            for (i, &code) in codes.iter().enumerate() {
                assert!((0..bits as usize).all(|b| bit(i * bits as usize + b) == code >> b & 1));
            }
        }
        assert_eq!((row_bytes(10, 3, 4), row_bytes(11, 3, 4), row_bytes(11, 3, 1)), (4, 8, 5));
    }
}
