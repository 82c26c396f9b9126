//! The clients of the service.

use std::net::SocketAddr;
use std::time::Duration;

use tailrace_idempotency::BoxError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Places an order of anna's; answers with status and body.
pub(crate) async fn place(
    address: SocketAddr,
    key: &'static str,
    body: &'static str,
) -> Result<String, BoxError> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncustomer: anna\r\nidempotency-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok(format!("{} {body}", head.split(' ').nth(1).unwrap_or_default()))
}

/// Whether nobody listens there.
pub(crate) async fn refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_err()
}

pub(crate) async fn until(
    mut holds: impl AsyncFnMut() -> Result<bool, BoxError>,
) -> Result<(), BoxError> {
    let waiting = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(WAIT_MAX, waiting).await?
}
