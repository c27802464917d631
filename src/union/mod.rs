//! What a name means, given layers: the layers themselves, the rules of the union over them, and a view of
//! them by these rules without a mount.

pub mod layer;
pub mod merge;
pub mod view;
