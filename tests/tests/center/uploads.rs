//! Uploads.

use crate::Site;
use crate::support::client::{Call, UPLOAD};
use elklet_proto::grpc::{FileUploadRequest, FileUploadResponse};
use prost::Message;

#[tokio::test]
async fn uploads_are_files() {
    let uploads = tempfile::tempdir().unwrap();
    let site = Site::with(|options| options.upload_dir = Some(uploads.path().join("new")));
    let mut client = site.client().await;
    let mut call = client.call(UPLOAD, Some("snappy")).await;
    for data in [&b"one "[..], b"two"] {
        call.send(&FileUploadRequest { token: "../t1".into(), data: data.to_vec() }).await;
    }
    call.finish();
    assert_eq!(upload_status(&mut call).await, 0);
    site.until("upload", |state| state.uploads.len() == 1).await;
    let upload = site.center.read(|state| state.uploads[0].clone());
    assert_eq!((upload.token.as_str(), upload.len, upload.error), ("../t1", 7, None));
    assert_eq!(upload.path, uploads.path().join("new/_._t1"));
    assert_eq!(std::fs::read(&upload.path).unwrap(), b"one two");

    let site = Site::new();
    let mut client = site.client().await;
    let mut call = client.call(UPLOAD, None).await;
    call.send(&FileUploadRequest { token: "t".into(), data: vec![1] }).await;
    call.finish();
    assert_eq!(upload_status(&mut call).await, 1, "nowhere to put it");
}

async fn upload_status(call: &mut Call) -> i32 {
    let response = call.message().await.unwrap().unwrap();
    let response = FileUploadResponse::decode(&response.body[..]).unwrap();
    assert_eq!(call.status().await.0, 0);
    response.status
}
