//! Canonical CIDR blocks and the arithmetic on them. PURE.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// 32-bit addresses.
    V4,
    /// 128-bit addresses.
    V6,
}

impl Family {
    /// The length of an address, in bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// Why a text is no CIDR block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not an address and a prefix length.
    #[error(
        "`{0}` is not a CIDR block: write an address and a prefix length, such as 10.32.0.0/16 or fd00:32::/48"
    )]
    Syntax(String),
    /// Bits after the prefix are set.
    #[error("`{given}` has host bits set: the block is `{canonical}`")]
    HostBits {
        /// As given.
        given: String,
        /// The block that it lies in.
        canonical: IpNet,
    },
    /// `auto/N` with an impossible length.
    #[error("`{0}` asks for no possible block: use auto/8 to auto/30, or auto6/16 to auto6/126")]
    AutoLength(String),
}

/// A canonical block of addresses: no bit after the prefix is set.
///
/// Orders by family, first address, then prefix length, so that a block stands directly before the
/// blocks inside it.
///
/// ```
/// use subsea_api::Cidr;
/// let error = "10.100.0.0/12".parse::<Cidr>().unwrap_err();
/// assert_eq!(error.to_string(), "`10.100.0.0/12` has host bits set: the block is `10.96.0.0/12`");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String))]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNet);

impl Cidr {
    /// The block of `prefix_len` bits that holds `addr`.
    ///
    /// Lengths beyond the family's are cut to a single address.
    pub fn containing(addr: IpAddr, prefix_len: u8) -> Self {
        match addr {
            IpAddr::V4(a) => {
                let len = prefix_len.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                Self(IpNet::V4(Ipv4Net::new_assert(
                    Ipv4Addr::from(u32::from(a) & mask),
                    len,
                )))
            }
            IpAddr::V6(a) => {
                let len = prefix_len.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                Self(IpNet::V6(Ipv6Net::new_assert(
                    Ipv6Addr::from(u128::from(a) & mask),
                    len,
                )))
            }
        }
    }

    /// A single address as a block (/32 or /128).
    pub fn host(addr: IpAddr) -> Self {
        Self::containing(addr, 128)
    }

    /// The underlying [`IpNet`].
    pub fn net(self) -> IpNet {
        self.0
    }

    /// IPv4 or IPv6.
    pub fn family(self) -> Family {
        match self.0 {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// The prefix length, in bits.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// The first address.
    pub fn first(self) -> IpAddr {
        self.0.network()
    }

    /// The last address (the broadcast address, in IPv4).
    pub fn last(self) -> IpAddr {
        self.0.broadcast()
    }

    /// Whether `addr` lies in the block. Never across families.
    pub fn contains(self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }

    /// Whether `other` lies wholly in the block. Never across families.
    pub fn covers(self, other: Self) -> bool {
        self.0.contains(&other.0)
    }

    /// The common block of two blocks: the smaller one when they overlap.
    ///
    /// ```
    /// use subsea_api::Cidr;
    /// let a: Cidr = "10.0.0.0/8".parse().unwrap();
    /// let b: Cidr = "10.1.0.0/16".parse().unwrap();
    /// assert_eq!(a.common(b), Some(b));
    /// ```
    pub fn common(self, other: Self) -> Option<Self> {
        if self.covers(other) {
            Some(other)
        } else if other.covers(self) {
            Some(self)
        } else {
            None
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax(text.chars().take(80).collect());
        // Not by `IpNet`, which reads `010.0.0.0/08` and `10.0.0.0/+8` too: a block has one spelling here.
        let (addr, len) = text.split_once('/').ok_or_else(syntax)?;
        let addr: IpAddr = addr.parse().map_err(|_| syntax())?;
        let prefix_len: u8 = len.parse().map_err(|_| syntax())?;
        let block = Self::containing(addr, prefix_len);
        if len != block.prefix_len().to_string() {
            return Err(syntax());
        }
        if block.first() == addr {
            Ok(block)
        } else {
            Err(CidrError::HostBits {
                given: text.to_owned(),
                canonical: block.net(),
            })
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.0.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a joining cluster asks for: a block of its own choice, or any free one of a length.
///
/// Texts: `10.32.0.0/16`, `auto/16` (IPv4), `auto6/56` (IPv6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CidrRequest {
    /// This block.
    Exact(Cidr),
    /// The first free block of this family and prefix length in the fleet's pool.
    Auto {
        /// IPv4 or IPv6.
        family: Family,
        /// In bits.
        prefix_len: u8,
    },
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for CidrRequest {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for CidrRequest {}

impl FromStr for CidrRequest {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (family, len, allowed) = if let Some(len) = text.strip_prefix("auto/") {
            (Family::V4, len, 8..=30)
        } else if let Some(len) = text.strip_prefix("auto6/") {
            (Family::V6, len, 16..=126)
        } else {
            return text.parse().map(Self::Exact);
        };
        // One spelling of a length, as in a block.
        match len.parse::<u8>() {
            Ok(prefix_len) if allowed.contains(&prefix_len) && len == prefix_len.to_string() => {
                Ok(Self::Auto { family, prefix_len })
            }
            _ => Err(CidrError::AutoLength(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for CidrRequest {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<CidrRequest> for String {
    fn from(request: CidrRequest) -> Self {
        request.to_string()
    }
}

impl fmt::Display for CidrRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(cidr) => cidr.fmt(f),
            Self::Auto {
                family: Family::V4,
                prefix_len,
            } => f.pad(&format!("auto/{prefix_len}")),
            Self::Auto {
                family: Family::V6,
                prefix_len,
            } => f.pad(&format!("auto6/{prefix_len}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_that_are_no_block_are_refused() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0/8",
            "010.0.0.0/8",
            " 10.0.0.0/8",
            "10.0.0.0/8\n",
            "10.0.0.0/8/8",
            "fd00::/129",
            "fd00:::/8",
            "fe80::%eth0/64",
            "[fd00::]/8",
            "default",
        ] {
            let error = bad.parse::<Cidr>().unwrap_err();
            assert!(matches!(error, CidrError::Syntax(_)), "{bad}: {error}");
            assert!(serde_json::from_value::<Cidr>(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_long_text_is_cut_in_the_error() {
        let error = "x".repeat(1 << 20).parse::<Cidr>().unwrap_err().to_string();
        assert!(error.len() < 200, "{}", error.len());
    }

    #[test]
    fn host_bits_name_the_canonical_block() {
        for (given, canonical) in [
            ("10.100.0.0/12", "10.96.0.0/12"),
            ("10.0.0.1/31", "10.0.0.0/31"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("fd00:1::1/32", "fd00:1::/32"),
        ] {
            let error = given.parse::<Cidr>().unwrap_err().to_string();
            let wanted = format!("`{given}` has host bits set: the block is `{canonical}`");
            assert_eq!(error, wanted);
        }
    }

    #[test]
    fn auto_has_one_spelling_and_possible_lengths() {
        for good in ["auto/8", "auto/30", "auto6/16", "auto6/126", "10.0.0.0/8"] {
            assert_eq!(good.parse::<CidrRequest>().unwrap().to_string(), good);
        }
        for bad in [
            "auto",
            "auto/",
            "auto/7",
            "auto/31",
            "auto/+16",
            "auto/016",
            "auto6/15",
            "auto6/127",
            "auto4/16",
            "auto/16 ",
            "Auto/16",
            "auto/300",
        ] {
            assert!(bad.parse::<CidrRequest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_edges_of_the_address_space_do_not_overflow() {
        for text in ["0.0.0.0/0", "255.255.255.255/32", "::/0"] {
            let all: Cidr = text.parse().unwrap();
            assert!(all.contains(all.first()) && all.contains(all.last()));
            assert_eq!(Cidr::containing(all.last(), all.prefix_len()), all);
        }
        let v4 = Ipv4Addr::new(10, 1, 2, 3).into();
        assert_eq!(Cidr::containing(v4, 200), Cidr::host(v4));
    }

    proptest! {
        #[test]
        fn a_block_survives_its_text_form(addr: IpAddr, len in 0..=128_u8) {
            let cidr = Cidr::containing(addr, len);
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
            let json = serde_json::to_string(&cidr).unwrap();
            prop_assert_eq!(serde_json::from_str::<Cidr>(&json).unwrap(), cidr);
            let request = CidrRequest::Exact(cidr);
            prop_assert_eq!(request.to_string().parse::<CidrRequest>().unwrap(), request);
        }

        #[test]
        fn an_address_with_a_length_is_its_block_or_names_it(addr: IpAddr, len in 0..=128_u8) {
            let len = len.min(if addr.is_ipv4() { 32 } else { 128 });
            let block = Cidr::containing(addr, len);
            prop_assert!(block.contains(addr));
            match format!("{addr}/{len}").parse::<Cidr>() {
                Ok(cidr) => prop_assert_eq!(cidr, block),
                Err(CidrError::HostBits { canonical, .. }) => {
                    prop_assert_eq!(canonical, block.net());
                    prop_assert_ne!(block.first(), addr);
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            drop((text.parse::<Cidr>(), text.parse::<CidrRequest>()));
        }
    }
}
