//! What a name means, given layers: the layers themselves, and the rules of the union over them.

pub mod layer;
pub mod merge;
