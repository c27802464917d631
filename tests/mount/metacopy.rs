//! `metacopy=on`.
