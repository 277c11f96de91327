//! Alone in its process, so that open files can be counted.
#![allow(clippy::unwrap_used)]

#[path = "edge/world.rs"]
mod world;

use nsm_api::*;
use world::*;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until as few files are open as before.
async fn settle(before: usize) {
    bounded(async {
        while open_files() > before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn no_file_stays_open() {
    let world = World::new().await;
    let fake = Fake::new(async |request: Request, _| match request.connection.id.as_str() {
        "refused" => Err(Error::invalid("connection", "is refused on purpose", "do not ask")),
        _ => {
            let (key, file) = file("theirs");
            let mut files = Files::default();
            files.insert(key, file);
            Ok(Answer { connection: Connection { mechanism: Some(kernel(key)), ..request.connection }, files, certificate: None })
        }
    });
    let before = open_files();
    let server = world.start(vec![world.unix("s")], Some(fake), None).await;
    {
        let api = world.dialer().network_service(&server.addresses[0], &Files::default());
        bounded(api.request(request("a", None), within())).await.unwrap();
        let connected = open_files();
        for id in ["a", "refused"] {
            for _ in 0..100 {
                let _ = bounded(api.request(request(id, Some(file("ours"))), within())).await;
            }
        }
        // The connection is still up, and holds none of the two hundred.
        settle(connected).await;
        let mut malformed = request("a", Some(file("ours")));
        malformed.connection.labels.insert("big".to_owned(), "x".repeat(limits::MAX_MAP_VALUE_BYTES + 1));
        bounded(api.request(malformed, within())).await.unwrap_err();
        settle(connected).await;
    }
    server.stop().await;
    settle(before).await;
}
