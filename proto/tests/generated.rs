//! The checked-in Rust messages are what prost makes of the `.proto` files today.

use std::path::Path;
use std::{env, fs};

#[test]
fn generated_messages_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["transfer.proto", "file_ext.proto", "bridge.proto", "enrollment.proto"];
    let descriptors = protox::compile(files, [root.join("proto")]).expect("the .proto files parse");
    let out = tempfile::tempdir().expect("a temporary directory");
    prost_build::Config::new().btree_map(["."]).out_dir(out.path()).compile_fds(descriptors).expect("prost generates");

    for name in ["grpc.rs", "bridge.rs", "elklet.rs"] {
        let fresh = fs::read_to_string(out.path().join(name)).expect("prost wrote the module");
        let kept_at = root.join("src/generated").join(name);
        if env::var_os("ELKLET_BLESS").is_some() {
            fs::write(&kept_at, &fresh).expect("the source tree is writable");
            continue;
        }
        let kept = fs::read_to_string(&kept_at).expect("the generated module is checked in");
        assert_eq!(kept, fresh, "{name} is stale: ELKLET_BLESS=1 cargo test -p elklet-proto writes it again");
    }
}
