//! What pglocks tell each other, and database administrators: the stable wire between versions.

pub mod query_tag;
pub mod slots;
