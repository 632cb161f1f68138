//! The command line of `subsea-broker`.
