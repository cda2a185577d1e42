//! What a client sends again by itself, and what it never does: a server of HTTP/2 alone, which does with each request what
//! a test says.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use h2::Reason;
use h2::server::SendResponse;
use http::{Request, Response};
use p8broker::client::Target;
use p8broker::clock::SystemClock;
use p8broker::metrics::Metrics;
use p8broker::tls::{ClientCaFile, Limits, Tls, TlsFiles};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;

use crate::harness::*;

/// What happens to a request once its message has arrived.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// HTTP/2 says that it was not processed.
    Refused,
    /// The connection ends, and nobody knows.
    Lost,
    /// It is answered: the caller is not known.
    Answered,
}

/// A server that treats its requests in this way, one after the other, and all further ones as the last.
struct Server {
    target: Target,
    /// The messages that arrived, whole.
    messages: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    _dir: TempDir,
}

impl Server {
    /// `asked_to_go` connections are asked to go before they have sent anything.
    async fn start(fates: Vec<Fate>, mut asked_to_go: u32) -> Self {
        let dir = TempDir::new().unwrap();
        let pki = Pki::new(&dir.path().join("pki"));
        let (certificate, key) = pki.files("server");
        let (file, trust_domains) = (pki.dir.join("ca.pem"), vec!["acme.internal".to_owned()]);
        let client_cas = vec![ClientCaFile { file, trust_domains, dns_suffixes: Vec::new() }];
        let files = TlsFiles { certificate, key, client_cas, crls: Vec::new() };
        let tls = Tls::load(files, Arc::new(SystemClock), Metrics::new().unwrap(), Arc::new(|| false)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (cert, key) = pki.client(CLIENT);
        let addr = listener.local_addr().unwrap().to_string();
        let target = Target::certified(addr, pki.dir.join("ca.pem"), cert, key);
        let (stop, tasks, messages) = (CancellationToken::new(), TaskTracker::new(), Arc::default());
        let limits = Limits { connections: 10, requests_per_second: NonZeroU32::MAX };
        let mut connections = Arc::new(tls).accept(listener, limits, &tasks, stop.clone());
        let (stopped, arrived) = (stop.clone(), Arc::<Mutex<Vec<Vec<u8>>>>::clone(&messages));
        let serving = async move {
            while let Some(connection) = connections.recv().await {
                let Ok(mut connection) = h2::server::handshake(connection.unwrap()).await else { continue };
                if asked_to_go > 0 {
                    asked_to_go -= 1;
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                }
                while let Some(Ok((request, answer))) = connection.accept().await {
                    let message = read(request, &mut connection).await;
                    arrived.lock().unwrap().push(message);
                    let nth = arrived.lock().unwrap().len() - 1;
                    if !meet(fates[nth.min(fates.len() - 1)], answer) {
                        break;
                    }
                }
            }
        };
        tasks.spawn(async move {
            let _ = stopped.run_until_cancelled(serving).await;
        });
        Self { target, messages, stop, tasks, _dir: dir }
    }

    /// What a client is told, and how many messages it took.
    async fn told(self) -> (Code, usize) {
        let mut client = Client::new(self.target.connect().await.unwrap());
        let code = client.issue(ask_fresh()).await.unwrap_err().code();
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let messages = self.messages.lock().unwrap();
        assert!(messages.iter().all(|it| it.len() > 5 && *it == messages[0]), "what is sent again is the same");
        (code, messages.len())
    }
}

type Connection = h2::server::Connection<p8broker::tls::Connection, hyper::body::Bytes>;

/// Reads a message to its end, while its connection goes on.
async fn read(request: Request<h2::RecvStream>, connection: &mut Connection) -> Vec<u8> {
    let (mut body, mut out) = (request.into_body(), Vec::new());
    let reading = async {
        while let Some(Ok(data)) = body.data().await {
            out.extend(data);
        }
    };
    tokio::select! {
        () = reading => {}
        _ = connection.accept() => {}
    }
    out
}

/// Answers whether the connection goes on.
fn meet(fate: Fate, mut answer: SendResponse<hyper::body::Bytes>) -> bool {
    match fate {
        Fate::Refused => answer.send_reset(Reason::REFUSED_STREAM),
        Fate::Lost => return false,
        Fate::Answered => {
            let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "16");
            drop(answer.send_response(head.body(()).unwrap(), true).unwrap());
        }
    }
    true
}

#[tokio::test]
async fn what_was_not_processed_is_sent_again() {
    let server = Server::start(vec![Fate::Refused, Fate::Refused, Fate::Answered], 0).await;
    assert_eq!(server.told().await, (Code::Unauthenticated, 3));
    let server = Server::start(vec![Fate::Answered], 2).await;
    assert_eq!(server.told().await, (Code::Unauthenticated, 1));
}

#[tokio::test]
async fn what_may_have_been_processed_is_not_sent_again() {
    let server = Server::start(vec![Fate::Lost, Fate::Answered], 0).await;
    let (code, messages) = server.told().await;
    assert_ne!(code, Code::Unauthenticated);
    assert_eq!(messages, 1);
}

#[tokio::test]
async fn a_broker_that_refuses_without_end_is_not_asked_without_end() {
    let server = Server::start(vec![Fate::Refused], 0).await;
    assert_eq!(server.told().await, (Code::Unavailable, 5));
}
