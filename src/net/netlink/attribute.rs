//! Reads and writes netlink messages by hand, where only a value of them matters. PURE.

/// The length of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// The type and body of every message of a datagram.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        let body = datagram.get(HEADER..length)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind, body))
    })
}

/// The value of an attribute after a fixed part of `fixed` bytes.
pub fn attribute(body: &[u8], fixed: usize, wanted: u16) -> Option<&[u8]> {
    const NESTED_OR_BIG_ENDIAN: u16 = 0xc000;
    let mut rest = body.get(fixed..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & !NESTED_OR_BIG_ENDIAN;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// The same for a text, without the zero at its end.
pub fn string(body: &[u8], fixed: usize, wanted: u16) -> Option<&[u8]> {
    attribute(body, fixed, wanted).map(|v| v.strip_suffix(&[0]).unwrap_or(v))
}

/// Appends an attribute.
pub fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A message with its header; the sequence number is left to who sends it.
pub fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}
