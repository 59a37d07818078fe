//! The number, or pair of numbers, that PostgreSQL knows a lock by.

use std::fmt;

/// The argument of `pg_advisory_lock`. PostgreSQL keeps the two forms apart: `(7)` and `(0,7)` are different locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum KeyId {
    /// `pg_advisory_lock(bigint)`; in `pg_locks`, `objsubid` is 1.
    Bigint(i64),
    /// `pg_advisory_lock(int, int)`; in `pg_locks`, `objsubid` is 2.
    IntPair(i32, i32),
}

impl KeyId {
    /// Returns the columns `classid`, `objid` and `objsubid` of the lock's row in `pg_locks`.
    pub(crate) fn in_pg_locks(self) -> (u32, u32, u8) {
        match self {
            KeyId::Bigint(id) => ((id >> 32) as u32, id as u32, 1),
            KeyId::IntPair(class, object) => (class as u32, object as u32, 2),
        }
    }

    /// Reads the columns `classid`, `objid` and `objsubid` of an advisory lock in `pg_locks`.
    pub(crate) fn from_pg_locks(classid: u32, objid: u32, objsubid: u32) -> KeyId {
        if objsubid == 1 {
            KeyId::Bigint((i64::from(classid) << 32) | i64::from(objid))
        } else {
            KeyId::IntPair(classid as i32, objid as i32)
        }
    }

    /// Returns the first number of a pair.
    pub(crate) fn class(self) -> Option<i32> {
        match self {
            KeyId::Bigint(_) => None,
            KeyId::IntPair(class, _) => Some(class),
        }
    }

    /// Returns the argument list of `pg_advisory_lock`. The numbers are quoted because a cast binds more tightly than a
    /// minus sign: `-9223372036854775808::bigint` overflows.
    pub(crate) fn literals(self) -> String {
        match self {
            KeyId::Bigint(id) => format!("'{id}'::bigint"),
            KeyId::IntPair(class, object) => format!("'{class}'::int, '{object}'::int"),
        }
    }
}

/// Prints the key as the command line takes it: `42`, or `1,2`.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyId::Bigint(id) => write!(f, "{id}"),
            KeyId::IntPair(class, object) => write!(f, "{class},{object}"),
        }
    }
}
