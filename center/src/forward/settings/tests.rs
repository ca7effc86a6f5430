use super::*;

fn read(text: &str) -> Result<Vec<Output>, String> {
    #[derive(Deserialize)]
    struct File {
        forward: Vec<toml::Table>,
    }
    parse(toml::from_str::<File>(text).unwrap().forward)
}

fn one(keys: &str) -> Result<Output, String> {
    read(&format!("[[forward]]\nname = \"a\"\n{keys}")).map(|mut outputs| outputs.remove(0))
}

#[test]
fn an_output_says_what_it_is_and_the_rest_has_defaults() {
    let file = one("kind = \"file\"\npath = \"/x\"\ntypes = [59]\nfrom = \"start\"").unwrap();
    let kind = Kind::File(FileOutput { path: "/x".into(), max_size: 100 << 20, keep: 5 });
    assert_eq!(file, Output { name: "a".into(), types: vec![59], from: From::Start, kind });
    let http = one("kind = \"http\"\nurl = \"https://[::1]:9/p?q=1\"\nuser = \"u\"\npassword = \"p\"").unwrap();
    let Kind::Http(http) = http.kind else { panic!("{http:?}") };
    assert_eq!((http.url.host.as_str(), http.url.port, http.url.path.as_str()), ("::1", 9, "/p?q=1"));
    assert_eq!(http.authorization, Some(Secret("Basic dTpw".into())));
    assert!(!format!("{http:?}").contains("dTpw"));
}

#[test]
fn a_secret_may_lie_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "abc\n").unwrap();
    let output = one(&format!("kind = \"http\"\nurl = \"http://a/\"\ntoken_file = {path:?}")).unwrap();
    let Kind::Http(http) = output.kind else { panic!("{output:?}") };
    assert_eq!(http.authorization, Some(Secret("Bearer abc".into())));
}

#[test]
fn what_makes_no_sense_is_told_with_the_name_of_the_output() {
    for (keys, told) in [
        ("", "a: missing field `kind`"),
        ("kind = \"pigeon\"", "a: kind: \"pigeon\", expected"),
        ("kind = \"file\"", "a: missing field `path`"),
        ("kind = \"file\"\npath = \"/x\"\npaht = 1", "a: unknown field `paht`"),
        ("kind = \"file\"\npath = \"x\"", "an absolute path"),
        ("kind = \"file\"\npath = \"/x\"\nmax_size = \"1\"", "max_size"),
        ("kind = \"file\"\npath = \"/x\"\nfrom = \"yesterday\"", "yesterday"),
        ("kind = \"http\"\nurl = \"http://a/\"\nformat = \"xml\"", "format: \"xml\""),
        ("kind = \"http\"\nurl = \"http://a/\"\nindex = \"x\"", "index is for"),
        ("kind = \"http\"\nurl = \"http://a/\"\nformat = \"elasticsearch\"\nindex = \"X\"", "index: \"X\""),
        ("kind = \"http\"\nurl = \"http://a/\"\nformat = \"loki\"\nlabels = [\"pid\"]", "labels: [\"pid\"]"),
        ("kind = \"kafka\"\nbrokers = []", "brokers: there are 0"),
        ("kind = \"kafka\"\nbrokers = [\"a\"]", "brokers: \"a\""),
        ("kind = \"kafka\"\nbrokers = [\"a:1\"]\ntopic = \"a b\"", "topic: \"a b\""),
        ("kind = \"kafka\"\nbrokers = [\"a:1\"]\nuser = \"u\"", "go together"),
        ("kind = \"kafka\"\nbrokers = [\"a:1\"]\nca = \"/x\"", "for tls = true"),
        ("kind = \"kafka\"\nbrokers = [\"a:1\"]\ncompression = \"rar\"", "rar"),
        ("kind = \"syslog\"\naddress = \"a:b:c\"", "address: \"a:b:c\""),
        ("kind = \"syslog\"\naddress = \"a\"\ntransport = \"udp\"", "transport: \"udp\""),
        ("kind = \"syslog\"\naddress = \"a\"\nfacility = 24", "facility: 24"),
        ("kind = \"syslog\"\naddress = \"a\"\nsd_id = \"elkeid\"", "sd_id: \"elkeid\""),
        ("kind = \"syslog\"\naddress = \"a\"\ntransport = \"tcp\"\nca = \"/x\"", "for transport"),
        ("kind = \"http\"\nurl = \"ftp://a/\"", "url: \"ftp://a/\""),
        ("kind = \"http\"\nurl = \"http://u:p@a/\"", "url:"),
        ("kind = \"http\"\nurl = \"http://a/\"\nuser = \"u\"", "a user and a password"),
        ("kind = \"http\"\nurl = \"http://a/\"\npassword_file = \"/nowhere\"", "password_file: /nowhere"),
        ("kind = \"http\"\nurl = \"http://a/\"\ntoken_file = \"/dev/zero\"", "/dev/zero: it is no regular file"),
        ("kind = \"http\"\nurl = \"http://a/\"\nca = \"/x\"", "for https"),
        ("kind = \"http\"\nurl = \"https://a/\"\ncert = \"/x\"", "cert and key"),
        ("kind = \"http\"\nurl = \"http://a/\"\ntimeout = \"0s\"", "timeout"),
    ] {
        let wrong = one(keys).unwrap_err();
        assert!(wrong.contains(told), "{keys}: {wrong}");
    }
    let twice = "[[forward]]\nname = \"a\"\nkind = \"file\"\npath = \"/x\"\n".repeat(2);
    assert!(read(&twice).unwrap_err().contains("two outputs"));
    assert!(read("[[forward]]\nname = \"A b\"\nkind = \"file\"\npath = \"/x\"").unwrap_err().contains("a-z"));
    assert!(read("[[forward]]\nkind = \"file\"").unwrap_err().contains("number 1: missing field `name`"));
}
