//! The mounted file system, verb by verb: every test runs on kernel overlayfs and on stratafs.
//!
//! | option | tests |
//! |---|---|
//! | all | `flags` `later_options_win_over_several_groups` `option_strings_of_4_kib_with_120_layers` |
//! | a wrong value, an unknown name | `wrong_values_name_option_and_value` `impossible_mounts` `unknown_options_warn_and_mount` `unsupported_options_of_engines_warn_and_mount` `bad_input_mounts_nothing_and_names_the_thing` |
//! | `redirect_dir=` | `lower_directory` `redirect_off_gives_exdev` `not_followed_when_told_so` |
//! | `index=` | `names_stay_one_file` `another_lower_is_refused` `without_file_handles` |
//! | `metacopy=`, data-only layers | `changes_of_attributes_copy_no_content` `the_first_write_copies` `refused_without_the_option` `data_only_layers` `moved_by_the_kernel` |
//! | `xino=` | `xino_on_two_file_systems` `xino_off` |
//! | `userxattr` | `userxattr` `userxattr_interchange` |
//! | `passthrough=` | `passthrough_modes` `every_way_to_open` `programs_are_in_memory_once` `passing_lower_files_through` |
//! | `writeback`, `timeout=`, `static_nlink` | `writeback` `timeout` `static_nlink` |
//! | `noacl`, `noxattrs` | `no_acl` `no_xattrs` `no_xattrs_but_the_marks` |
//! | `fsync=0`, `volatile` | `fsync_off` `volatile` `volatile_after_a_crash` |
//! | `squash_to_root`, `squash_to_uid`, `squash_to_gid` | `squash_to_root` `squashed_owners` `squash_to_an_id_and_to_root` |
//! | `uidmapping`, `gidmapping` | `mapped_owners` `unmapped_owners` `mappings_with_empty_fields` |
//! | `xattr_permissions=` | `attributes_of_a_lower_layer_are_shown` `changes_are_kept` `kept_permissions` `as_an_ordinary_user` |
//! | idmapped mounts of the mount | `owners_on_an_idmapped_mount` |
//! | `context=` | `security_context` |
//! | `inventory=` | `off` `stratafs_with_inventories` |
//! | `transport=` | `through_rings` `requests_that_wait_hold_up_no_others` `stopped_and_killed` `aborted` `where_there_are_none` `with_little_locked_memory` `many_mounts` |
//! | flags of the mount | `generic_options` `the_kernel_shows_the_flags` `remount_by_the_program` `noatime` |
//!
//! | behaviour | tests |
//! |---|---|
//! | open files across copy-up, unlink, rename-over, rmdir, remount-ro | `open_files_outlive_their_name` `open_files_follow_the_file` `atomic_replacement` `removed_directory_reads_empty` `in_a_removed_directory` `remounted_read_only` `o_trunc_with_other_handles` |
//! | what is read ahead of the reader | `files_are_read_ahead` `files_are_read_ahead_by_name` `files_out_of_order_are_not_read_ahead` |
//! | an early reader sees later writes | `early_reader_sees_later_writes` `early_mapping_sees_later_writes` `writer_beside_an_early_reader` |
//! | mappings: coherent, and they move the times | `mappings_are_coherent` `mapped_writes_move_the_times` |
//! | sqlite with WAL from several processes | `sqlite_wal` `sqlite_over_copy_up` |
//! | locks, also over a copy-up | `flock_excludes` `posix_locks_between_processes` `locks_hold_across_copy_up` `locks_of_early_readers` |
//! | a program that was just written runs | `executing_files` `running_programs_are_left_alone` |
//! | inotify | `inotify` `inotify_over_copy_up` |
//! | owners, umask, default ACLs, setgid directories, sticky bit | `creator_owns` `umask_applies` `default_acls` `setgid_directories_pass_on_their_group` `sticky_directories` |
//! | suid, sgid and capabilities on write, chown, truncate; kept by copy-up | `suid_is_cleared` `root_keeps_suid_on_write_but_not_on_chown` `copy_up_keeps_suid` `file_capabilities` `access_acls` |
//! | listings: stable positions, deleting while reading, `d_ino` | `positions_are_stable` `deleting_while_reading` `creating_while_reading` `numbers_and_types_are_those_of_stat` |
//! | 100,000 entries | `many_entries` `large_directory` |
//! | names: 255 bytes, any bytes, those of whiteouts | `longest_names` `names_are_bytes` `names_of_whiteouts` `names_of_whiteouts_in_a_lower_layer` `names_of_whiteouts_on_uppers_that_can_do_less` |
//! | copy_file_range, fallocate, holes | `copy_file_range` `fallocate_modes` `fallocate_modes_that_fuse_lacks` `seek_hole_and_data` `sparse_files_stay_sparse` |
//! | statfs, fsync | `statfs` `fsync_reaches_the_upper` `a_copied_up_file_is_whole_or_not_there` |
//! | O_TMPFILE and linkat of it | `o_tmpfile` `tmpfile_works` `of_an_open_unlinked_file` |
//! | many layers | `two_hundred_layers` `many_layers` |
//! | layers on other file systems | `lowers_on_two_file_systems` `lower_is_an_overlay` `lower_is_a_stratafs` `lower_on_squashfs_or_erofs` `upper_on_xfs_or_btrfs` `upper_on_tmpfs` `upper_on_a_read_only_file_system` |
//! | sixteen processes at once | `storm` |
//! | damaged marks | `redirects_that_point_outside` `metacopy_redirects_that_point_outside` `data_only_redirects_that_point_outside` `redirects_of_lower_layers` `redirects_in_a_circle` `origins` `opaque_values` `unknown_values_mean_no` `metacopy_marks` `link_counts` `index_is_cleaned` `stale_entries_are_removed` `whiteouts_with_content` `whiteouts_out_of_place` `odd_whiteout_names` `attributes_of_64_kib` `told_once` `sound_layers_are_silent` |
//! | a lower layer that changes below the mount | `lower_changes_underneath` `a_file_changed_in_its_layer_is_read_whole` `work_directory_vanishes` |
//! | interchange with the kernel, other drivers' marks | `interchange` `indexed_interchange` `marks_as_the_kernel_sets_them` `kernel_made_upper` `marks_of_every_name_space_are_read` `aufs_marks_are_read` `marks_of_fuse_overlayfs` `named_whiteouts` `named_opaque` |

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod applications;
mod attr;
mod caching;
mod checkpoint;
mod create;
mod damaged;
mod fixtures;
mod identity;
mod idmap;
mod index;
mod inventory;
mod io;
mod layers;
mod link;
mod locks;
mod lookup;
mod metacopy;
mod nested;
mod opaque;
mod options;
mod ownership;
mod passthrough;
mod peers;
mod permissions;
mod power;
mod readdir;
mod redirect;
mod remove;
mod rename;
mod security;
mod special;
mod transport;
mod uppers;
mod xattr;
