//! The meaning of names in layers: the layers themselves, the rules of the union, and a view of layers by
//! these rules without a mount.

pub mod layer;
pub mod merge;
pub mod view;
