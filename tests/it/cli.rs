//! The built program, as a shell calls it.

use std::path::Path;
use std::process::{Command, Output};

fn avouch(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avouch"));
    command.current_dir(dir).args(arguments).env_clear();
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The commands that the help of `path` lists.
fn commands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.trim().is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

#[test]
fn the_help_of_every_command_shows_an_example() {
    let dir = tempfile::tempdir().unwrap();
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = avouch(dir.path(), &arguments);
        let help = text(&output.stdout);
        assert!(output.status.success(), "{path:?}");
        let examples = help.split_once("Example").expect("an example").1;
        // A line that the terminal breaks is no longer one command when it is pasted.
        assert!(examples.lines().all(|line| line.chars().count() < 80), "{path:?}\n{examples}");
        waiting.extend(commands(&help).into_iter().map(|name| [path.clone(), vec![name]].concat()));
        seen += 1;
    }
    assert_eq!(seen, 43);
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        vec!["serve", "--frobnicate"],
        vec!["frobnicate"],
        vec!["revoke"],
        vec!["revoke", "--everything", "--subject", "x"],
        vec!["revoke", "--everything", "--reason", "because"],
        vec!["user", "get"],
        vec!["user", "list"],
        vec!["login", "--username", "ada", "--password", "in-the-open"],
    ] {
        let output = avouch(dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_good_configuration_is_summarised_and_a_bad_one_is_64() {
    let dir = tempfile::tempdir().unwrap();
    let good = "[issuer]\nurl = \"https://id.example.com\"\n[store]\npath = \"data\"\n[keys]\nencryption_key_file = \"key\"\n";
    std::fs::write(dir.path().join("good.toml"), good).unwrap();
    std::fs::write(
        dir.path().join("bad.toml"),
        "[server]\nlisen = \"x\"\n[tokens]\nretry_window = 5\n",
    )
    .unwrap();

    let output = avouch(dir.path(), &["check-config", "--config", "good.toml", "--without-files"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("issuer https://id.example.com"));

    let output = avouch(dir.path(), &["check-config", "--config", "bad.toml"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        errors.contains("bad.toml:2: server.lisen is not known; did you mean server.listen?"),
        "{errors}"
    );
    assert!(errors.contains("bad.toml:4: tokens.retry_window must be a duration"), "{errors}");
    assert!(errors.contains("issuer.url is missing"), "{errors}");
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "c2VjcmV0LWtleS1tYXRlcmlhbA==").unwrap();
    let arguments = ["check-config", "--dev", "--set", "keys.encryption_key_file=key"];
    for (mode, code) in [(0o644, 64), (0o600, 0)] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let output = avouch(dir.path(), &arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(!errors.contains("c2VjcmV0"));
    }
}

#[test]
fn files_that_are_not_there_are_mistakes_and_each_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    private(dir.path(), "key", "c2VjcmV0LWtleS1tYXRlcmlhbA==");
    let mut arguments = vec!["check-config", "--dev"];
    for set in [
        "tls.cert_file=no.pem",
        "tls.key_file=key",
        "tls.client_ca_file=no-ca.pem",
        "tls.client_auth=required",
        "password.blocklist_file=no.txt",
    ] {
        arguments.extend(["--set", set]);
    }
    let output = avouch(dir.path(), &arguments);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{errors}");
    for line in [
        "tls.cert_file: no.pem cannot be read",
        "tls.client_ca_file: no-ca.pem cannot be read",
        "password.blocklist_file: no.txt cannot be read",
    ] {
        assert!(errors.contains(line), "{line}: {errors}");
    }
    let output = avouch(dir.path(), &[&arguments[..], &["--without-files"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));

    // What only a look inside shows comes when the server starts, and the cause is said once.
    private(dir.path(), "junk.pem", "junk");
    let serve = ["serve", "--dev", "--set", "tls.cert_file=junk.pem", "--set", "tls.key_file=key"];
    let output = avouch(dir.path(), &serve);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.matches("no items found").count(), 1, "{errors}");
}

#[test]
fn the_reference_names_every_key_and_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let output = avouch(dir.path(), &["check-config", "--reference"]);
    let reference = text(&output.stdout);
    for line in ["[server]", "#listen = \"127.0.0.1:7700\"", "[AVOUCH_TOKENS_RETRY_WINDOW]"] {
        assert!(reference.contains(line), "{line}");
    }
}

/// A file that only its owner can read, as the program demands.
fn private(dir: &Path, name: &str, content: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_server_that_is_not_there_is_said_in_plain_words() {
    let dir = tempfile::tempdir().unwrap();
    private(dir.path(), "token", "x");
    for command in [&["user", "list"][..], &["watch"]] {
        let there = ["--server", "http://127.0.0.1:1", "--token", "token"];
        let output = avouch(dir.path(), &[command, &there].concat());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            errors.contains("http://127.0.0.1:1 cannot be reached: Connection refused"),
            "{errors}"
        );
        assert_eq!(text(&output.stdout), "", "{command:?}");
    }
}

/// The server would take what is no token for one that is unknown, and call that a success.
#[test]
fn a_file_without_the_token_that_was_asked_for_revokes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let refresh = format!("avr1_{}", "A".repeat(75));
    private(dir.path(), "bare", &refresh);
    private(dir.path(), "none.json", "{}");
    private(dir.path(), "refresh.json", &format!("{{\"refresh_token\":\"{refresh}\"}}"));
    let access_only = "--access-token-only";
    for (arguments, why) in [
        (vec!["none.json"], "none.json holds no refresh_token and no access_token"),
        (vec!["refresh.json", access_only], "refresh.json holds no access_token"),
        (vec!["bare", access_only], "bare holds a refresh token alone"),
    ] {
        let line = [vec!["revoke", "--token", "bare", "--token-file"], arguments].concat();
        let output = avouch(dir.path(), &line);
        assert_eq!(output.status.code(), Some(1), "{line:?}");
        let errors = text(&output.stderr);
        assert!(errors.contains(why), "{line:?}: {errors}");
        assert!(!errors.contains("avr1_"));
    }
}

#[test]
fn the_demo_tells_its_story_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let output = avouch(dir.path(), &["demo"]);
    let story = text(&output.stdout);
    assert!(output.status.success(), "{story}\n{}", text(&output.stderr));
    assert_eq!(story.matches("knew").count(), 6, "{story}");
    assert!(story.contains("the whole session is revoked"), "{story}");
}

/// A server in a directory of its own, killed when dropped.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tokens_live_in_private_files_and_a_revoked_one_is_inactive() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0";
    let serve = ["serve", "--dev", "--listen", any, "--public-listen", any, "--ops-listen", any];
    let child = Command::new(env!("CARGO_BIN_EXE_avouch"))
        .current_dir(dir.path())
        .args(serve)
        .env_clear()
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let _server = Server(child);
    let addresses = dir.path().join("avouch-data/addresses.json");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !addresses.exists() {
        assert!(tokio::time::Instant::now() < deadline, "the server did not start");
        std::thread::yield_now();
    }
    let addresses: serde_json::Value =
        serde_json::from_slice(&std::fs::read(addresses).unwrap()).unwrap();
    let url = format!("http://{}", addresses["grpc"].as_str().unwrap());
    let call_and_hear = |arguments: &str| {
        let arguments: Vec<&str> =
            arguments.split(' ').chain(["--json", "--server", &url]).collect();
        let output = avouch(dir.path(), &arguments);
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {errors}");
        assert!(!out.contains("avr1_") && !errors.contains("avr1_"));
        let first = out.lines().next().unwrap();
        (serde_json::from_str::<serde_json::Value>(first).unwrap(), errors)
    };
    let call = |arguments: &str| call_and_hear(arguments).0;
    const LOGIN: &str = "--credentials avouch-data/login-client.json";
    const ADMIN: &str = "--credentials avouch-data/admin-client.json";
    call(&format!(
        "login {LOGIN} --username ada --password-file avouch-data/ada.password --save t.json"
    ));
    let mode = std::fs::metadata(dir.path().join("t.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(call(&format!("introspect t.json {ADMIN}"))["active"], true);
    assert_eq!(call(&format!("refresh t.json {LOGIN}"))["session_id"].as_str().unwrap().len(), 22);
    assert_eq!(call("session list --token t.json")["state"], "active");
    let revoke = format!("revoke --token-file t.json --reason logout {LOGIN}");
    let (revoked, said) = call_and_hear(&revoke);
    assert_eq!(revoked["revoked"]["reason"], "logout");
    assert_eq!(said, "");
    let (revoked, said) = call_and_hear(&revoke);
    assert!(revoked["revoked"].is_null() && said.starts_with("nothing was revoked"), "{said}");
    assert_eq!(call(&format!("introspect t.json {ADMIN}"))["active"], false);
    assert_eq!(call(&format!("user get --by-name ada {ADMIN}"))["username"], "ada");
}
