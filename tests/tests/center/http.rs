//! The HTTP port: commands, the list of connections, service discovery, signatures.

use crate::support::http;
use crate::{Site, batch, record};
use elklet_proto::grpc::Task;
use elklet_tests::center::{AccessKey, Instance, Signed};

#[tokio::test(flavor = "multi_thread")]
async fn commands_come_in_over_http() {
    let site = Site::new();
    let (_client, mut call) = site.agent("a").await;
    let post = |body: &str| http::post(site.http(), "/command/", body);
    let answer = post(
        r#"{"agent_id":"a","command":{"agent_ctrl":1,
            "task":{"data_type":1060,"name":"elkeid-agent","data":"{}","token":"t1"},
            "config":[{"name":"driver","type":"exec","version":"1","sha256":"s","signature":"g",
                "download_url":["http://x/"],"detail":"d"}]}}"#,
    );
    assert_eq!((answer.status, &answer.json()["code"]), (200, &0.into()));
    let command = call.command().await;
    assert_eq!(command.agent_ctrl, 1);
    let task = Task { data_type: 1060, object_name: "elkeid-agent".into(), data: "{}".into(), token: "t1".into() };
    assert_eq!(command.task, Some(task));
    assert_eq!(command.configs[0].download_urls, ["http://x/"]);
    assert_eq!((command.configs[0].detail.as_str(), command.configs[0].signature.as_str()), ("d", "g"));

    for wrong in ["", "{", r#"{"agent_id":"a"}"#, r#"{"agent_id":"","command":{}}"#, r#"{"agent_id":1,"command":{}}"#] {
        let answer = post(wrong);
        assert_eq!((answer.status, &answer.json()["code"]), (400, &2.into()), "{wrong}");
    }
    let answer = post(r#"{"agent_id":"nobody","command":{}}"#).json();
    assert_eq!((&answer["code"], &answer["msg"]), (&3.into(), &"agent nobody is not connected".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_told() {
    let site = Site::new();
    let http = site.http();
    let (_client_a, mut call_a) = site.agent("a").await;
    let (_client_b, mut call_b) = site.agent("b").await;
    let mut heartbeat = batch("a", &[]);
    heartbeat.records = vec![
        record(1000, &[("rss", "1024"), ("cpu", "0.50000000"), ("kernel_version", "6.1"), ("host_serial", "007")]),
        record(1001, &[("name", "driver"), ("pversion", "1.0"), ("pid", "7")]),
    ];
    call_a.send(&heartbeat).await;
    site.until("heartbeat", |state| state.agent("a").heartbeat.is_some()).await;

    assert_eq!(http::get(http, "/conn/list").json()["data"], serde_json::json!(["a", "b"]));
    assert_eq!(http::get(http, "/conn/count").json()["data"], 2);
    let stat = http::get(http, "/conn/stat").json();
    let info = &stat["data"][0]["agent_info"];
    assert_eq!((&info["rss"], &info["cpu"], &info["kernel_version"]), (&1024.into(), &0.5.into(), &6.1.into()));
    assert_eq!((&info["host_serial"], &info["version"]), (&"007".into(), &"1.7.0.24".into()));
    assert_eq!((&info["agent_id"], &info["intranet_ipv4"][0]), (&"a".into(), &"10.0.0.1".into()));
    assert!(info["last_heartbeat_time"].is_u64() && info["create_at"].is_u64() && info["agent_addr"].is_string());
    let plugin = &stat["data"][0]["plugins_info"][0];
    assert_eq!((&plugin["name"], &plugin["pversion"], &plugin["pid"]), (&"driver".into(), &"1.0".into(), &7.into()));
    assert_eq!(stat["data"][1], serde_json::json!({"agent_info": {}, "plugins_info": []}));
    assert_eq!(http::get(http, "/ping").status, 200);
    let metrics = http::get(http, "/metrics").body;
    assert!(metrics.contains("center_connected_agents 2\n"), "{metrics}");
    assert!(metrics.contains("center_records_total{data_type=\"1000\"} 1\n"), "{metrics}");
    assert_eq!(http::get(http, "/nowhere").status, 404);

    let reset = http::post(http, "/conn/reset", r#"{"type":"strict","id_list":["b","nobody"]}"#).json();
    assert_eq!((&reset["code"], &reset["data"]), (&0.into(), &serde_json::json!(["b"])));
    assert_eq!(call_b.status().await, (0, String::new()));
    let reset = http::post(http, "/conn/reset", r#"{"type":"random","count":5}"#).json();
    assert_eq!(reset["data"], serde_json::json!(["a"]));
    assert_eq!(call_a.status().await, (0, String::new()));
    assert_eq!(http::post(http, "/conn/reset", r#"{"type":"other"}"#).json()["code"], 2);
    site.until("ends", |state| state.connected().next().is_none()).await;
}

#[test]
fn service_discovery_knows_the_center_and_what_it_is_told() {
    let site = Site::new();
    let http = site.http();
    let detail = |query: &str| http::get(http, &format!("/registry/detail{query}"));
    let itself = detail("?name=hids_svr_grpc&count=10").json();
    assert_eq!(itself["msg"], "ok");
    assert_eq!(itself["data"][0]["ip"], "127.0.0.1");
    assert_eq!(itself["data"][0]["port"], site.center.grpc_addr().port());
    assert_eq!(detail("?count=10&name=other").json(), serde_json::json!({"msg": "ok", "data": []}));
    assert_eq!(detail("").status, 400);
    assert_eq!(detail("?name=").status, 400);
    let elsewhere = ["10.0.0.1:6751", "[fd00::1]:6751"].map(|at| Instance::new("hids_svr_grpc", at.parse().unwrap()));
    site.center.set_registry("hids_svr_grpc", elsewhere.to_vec());
    let told = detail("?name=hids_svr_grpc").json();
    assert_eq!((&told["data"][0]["ip"], &told["data"][1]["ip"]), (&"10.0.0.1".into(), &"fd00::1".into()));
}

#[test]
fn requests_are_signed_where_keys_are_set() {
    let key = AccessKey { access_key: "ak".into(), secret_key: "sk".into() };
    let site = Site::with(|options| options.access_key = Some(key.clone()));
    let http = site.http();
    assert_eq!(http::get(http, "/conn/list").json()["code"], 1);
    assert_eq!(http::get(http, "/ping").json()["code"], 0);
    assert_eq!(http::get(http, "/registry/detail?name=x").status, 200);
    let now =
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string();
    let unsigned = Signed {
        access_key: "ak",
        timestamp: &now,
        signature: "",
        method: "GET",
        path: "/conn/list",
        query: "a=b",
        body: b"",
    };
    let signature = key.sign(&unsigned);
    let headers = [("AccessKey", "ak"), ("TimeStamp", now.as_str()), ("Signature", signature.as_str())];
    assert_eq!(http::request(http, "GET", "/conn/list?a=b", &headers, "").json()["code"], 0);
    assert_eq!(http::request(http, "GET", "/conn/list?a=c", &headers, "").json()["code"], 1);
}
