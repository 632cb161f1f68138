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
        let net: IpNet = text.parse().map_err(|_| syntax())?;
        // `IpNet` reads `10.0.0.0/08` too; one block has one spelling of its length here.
        if text
            .rsplit_once('/')
            .is_none_or(|(_, len)| len.len() > 1 && len.starts_with('0'))
        {
            return Err(syntax());
        }
        if net.trunc() == net {
            Ok(Self(net))
        } else {
            Err(CidrError::HostBits {
                given: text.to_owned(),
                canonical: net.trunc(),
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
        match len.parse::<u8>() {
            Ok(prefix_len) if allowed.contains(&prefix_len) => {
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
