//! Words after IMAGE, or after the container of `exec`, belong to the container, whatever they look like.

use super::super::container::worlds;

#[test]
fn words_after_the_image_are_the_containers() {
    for world in worlds() {
        let driver = world.driver;
        let script = "printf '%s\\n' \"$*\"";
        world.ok(&["run", "--name", "e", "tool:1", "true"]);
        let entrypoint = format!("ENTRYPOINT {}", serde_json::json!(["/bin/sh", "-c", script, "sh"]));
        world.ok(&["commit", "-c", &entrypoint, "e", "echo:1"]);
        let echo = ["run", "--rm", "echo:1"];
        let table: [&[&str]; 12] = [
            &["--help"],
            &["-h"],
            &["--version"],
            &["-d"],
            &["-e", "A=1"],
            &["--rm"],
            &["--root", "/nonexistent"],
            &["--name=x", "--entrypoint", "y"],
            &["--", "x"],
            &["a", "--", "--rm"],
            &["-it", "--read-only", "--driver", "overlay"],
            &["", "-"],
        ];
        for words in table {
            let shown = world.ok(&[&echo[..], words].concat());
            assert_eq!(shown, format!("{}\n", words.join(" ")), "{driver}: {words:?}");
        }
        assert_eq!(world.ok(&["run", "--rm", "--", "tool:1", "echo after"]), "after\n", "{driver}");
        world.ok(&["run", "-d", "--name", "c", "tool:1", "sleep 1000"]);
        for words in table {
            let shown = world.ok(&[&["exec", "c", "/bin/sh", "-c", script, "sh"], words].concat());
            assert_eq!(shown, format!("{}\n", words.join(" ")), "{driver}: exec {words:?}");
        }
        world.ok(&["rm", "-f", "c"]);
        // Words before the image are this program's.
        assert_eq!(world.run(&["run", "--nonsense", "tool:1"]).status.code(), Some(125));
        assert_eq!(world.run(&["run"]).status.code(), Some(125));
        assert_eq!(world.run(&["exec", "c"]).status.code(), Some(125));
    }
}
