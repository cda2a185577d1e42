//! Exports spans: OTLP over gRPC, to one collector.
//!
//! Steps: wait for a span; gather more for a moment; send them together. A collector that is away or hangs costs the spans
//! that meanwhile find no room, which are counted, and nothing else: no request ever waits for any of this.
//!
//! A stop sends what is left, within a limit.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::config::TracesConfig;
use crate::metrics::Metrics;
use crate::trace::Tracer;

/// Most spans in one export.
const MOST: usize = 512;

/// How long the first span of an export waits for others, and how long it takes until the next try after a failure.
const GATHER: Duration = Duration::from_secs(1);

/// How long an export may take, and a connection.
const EXPORT: Duration = Duration::from_secs(5);

/// How long a stop waits for what is left.
const FLUSH: Duration = Duration::from_secs(3);

/// Why traces can't be exported as the configuration says.
#[derive(Debug, thiserror::Error)]
#[error("traces.{0}")]
pub struct TracesError(String);

type Headers = Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>;

/// The way to the collector.
pub struct Export {
    client: TraceServiceClient<Channel>,
    headers_file: Option<PathBuf>,
    resource: ResourceAttributesWithSchema,
    queue: mpsc::Receiver<SpanData>,
    /// What is about to be sent.
    batch: Vec<SpanData>,
    /// How many are on their way.
    sending: usize,
    metrics: Metrics,
    failing: bool,
}

/// A tracer, and what exports its spans; neither where no collector is configured. Connects with the first export.
///
/// # Errors
/// Where a file or the address can't be used.
pub fn traces(
    config: &TracesConfig,
    replica: &str,
    metrics: &Metrics,
) -> Result<Option<(Tracer, Export)>, TracesError> {
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    let channel = channel(endpoint, config.ca_file.clone())?;
    if let Some(file) = &config.headers_file {
        headers(file)?;
    }
    let attributes = [("service.version", env!("CARGO_PKG_VERSION")), ("service.instance.id", replica)];
    let resource = Resource::builder().with_service_name("p8broker");
    let resource = resource.with_attributes(attributes.map(|(name, value)| KeyValue::new(name, value.to_owned())));
    let (tracer, queue) = Tracer::new(config.sample_ratio, metrics.spans_dropped.clone());
    let export = Export {
        client: TraceServiceClient::new(channel),
        headers_file: config.headers_file.clone(),
        resource: ResourceAttributesWithSchema::from(&resource.build()),
        queue,
        batch: Vec::with_capacity(MOST),
        sending: 0,
        metrics: metrics.clone(),
        failing: false,
    };
    Ok(Some((tracer, export)))
}

impl Export {
    /// Exports until told to stop, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let end = stop.clone();
        let late = async {
            end.cancelled().await;
            tokio::time::sleep(FLUSH).await;
        };
        let is_late = tokio::select! {
            () = self.work(&stop) => false,
            () = late => true,
        };
        if is_late {
            let lost = [self.batch.len(), self.sending].into_iter().fold(self.queue.len(), usize::saturating_add);
            self.metrics.spans_dropped.inc_by(lost as u64);
            tracing::warn!(spans = lost, "the collector did not take the last spans in time");
        }
    }

    async fn work(&mut self, stop: &CancellationToken) {
        // A queue that was told to close still gives what is in it; then there is nothing more.
        while self.gather(stop).await {
            let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(MOST));
            self.sending = batch.len();
            match self.send(batch).await {
                Ok(rejected) => {
                    self.metrics.spans_dropped.inc_by(rejected);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the collector takes spans again");
                    }
                }
                Err(why) => {
                    self.metrics.spans_dropped.inc_by(self.sending as u64);
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%why, spans = self.sending, "spans can't be exported; this is said once until they can");
                    }
                    // Counted, and not once more where a stop ends the pause.
                    self.sending = 0;
                    // Not as fast as a refused connection allows.
                    let _ = stop.run_until_cancelled(tokio::time::sleep(GATHER)).await;
                }
            }
            self.sending = 0;
        }
    }

    /// Fills the batch; answers whether there is anything in it. Empty and told to stop, there never will be.
    async fn gather(&mut self, stop: &CancellationToken) -> bool {
        let first = stop.run_until_cancelled(self.queue.recv_many(&mut self.batch, MOST)).await;
        // A full batch waits for no more: under load it is the collector that says how fast.
        if first.is_some() && self.batch.len() < MOST {
            let more = async {
                while self.batch.len() < MOST {
                    let room = MOST.saturating_sub(self.batch.len());
                    if self.queue.recv_many(&mut self.batch, room).await == 0 {
                        break;
                    }
                }
            };
            let _ = stop.run_until_cancelled(tokio::time::timeout(GATHER, more)).await;
        }
        if stop.is_cancelled() {
            self.queue.close();
        }
        while self.batch.len() < MOST {
            let Ok(span) = self.queue.try_recv() else { break };
            self.batch.push(span);
        }
        !self.batch.is_empty()
    }

    /// Sends a batch; answers how many of its spans the collector did not take.
    async fn send(&mut self, batch: Vec<SpanData>) -> Result<u64, String> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let mut request = Request::new(ExportTraceServiceRequest { resource_spans });
        if let Some(file) = &self.headers_file {
            for (name, value) in headers(file).map_err(|error| error.to_string())? {
                request.metadata_mut().insert(name, value);
            }
        }
        request.set_timeout(EXPORT);
        let answer = tokio::time::timeout(EXPORT, self.client.export(request)).await;
        let answer = answer.map_err(|_| "the collector does not answer".to_owned())?;
        // What a collector says is shown as the code alone: a message may repeat what was sent to it.
        let answer = answer.map_err(|status| format!("the collector answers {:?}", status.code()))?.into_inner();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or_default())
    }
}

fn channel(endpoint: &str, ca_file: Option<PathBuf>) -> Result<Channel, TracesError> {
    let wrong = |error: &dyn std::fmt::Display| TracesError(format!("endpoint: {error}"));
    let uri: Uri = endpoint.parse().map_err(|error| wrong(&error))?;
    let limits = |it: Endpoint| it.connect_timeout(EXPORT).timeout(EXPORT);
    if uri.scheme_str() != Some("https") {
        return Ok(limits(Endpoint::from(uri)).connect_lazy());
    }
    let host = uri.host().ok_or_else(|| wrong(&"has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|error| wrong(&error))?;
    let port = uri.port_u16().unwrap_or(443);
    // Said at the start what would be said at each connection.
    tls(ca_file.as_ref())?;
    // The connector speaks TLS itself; the origin is what requests say.
    let plain = format!("http://{}", uri.authority().map_or_else(|| host.clone(), ToString::to_string));
    let at = limits(Endpoint::from_shared(plain).map_err(|error| wrong(&error))?.origin(uri));
    let shared = Arc::new((host, port, name, ca_file));
    Ok(at.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let shared = Arc::clone(&shared);
        async move {
            let (host, port, name, ca_file) = &*shared;
            let connector = TlsConnector::from(Arc::new(tls(ca_file.as_ref()).map_err(io::Error::other)?));
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            connector.connect(name.clone(), stream).await.map(TokioIo::<TlsStream<TcpStream>>::new)
        }
    })))
}

fn tls(ca_file: Option<&PathBuf>) -> Result<ClientConfig, TracesError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let wrong = |error: &dyn std::fmt::Display| TracesError(format!("ca_file: {}: {error}", file.display()));
            for ca in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
                let ca = ca.map_err(|error| wrong(&error))?;
                roots.add(ca).map_err(|error| wrong(&error))?;
            }
            if roots.is_empty() {
                return Err(wrong(&"holds no certificate"));
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TracesError(format!("endpoint: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The lines of a file of headers. Errors name a line by its number alone: the rest may be secret.
fn headers(file: &PathBuf) -> Result<Headers, TracesError> {
    let wrong = |what: String| TracesError(format!("headers_file: {}: {what}", file.display()));
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?);
    let mut out = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let header = line.split_once(':').and_then(|(name, value)| {
            let name = MetadataKey::from_bytes(name.trim().to_ascii_lowercase().as_bytes()).ok()?;
            let mut value = MetadataValue::try_from(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let line = at.saturating_add(1);
        out.push(header.ok_or_else(|| wrong(format!("line {line} is not `name: value` as a header can hold it")))?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Remote;

    #[tokio::test]
    async fn a_full_batch_waits_for_no_more_and_another_one_for_a_while() {
        let config = TracesConfig {
            endpoint: Some("http://127.0.0.1:4317".to_owned()),
            sample_ratio: 1.0,
            ..TracesConfig::default()
        };
        let (tracer, mut export) = traces(&config, "a", &Metrics::new().unwrap()).unwrap().unwrap();
        // Two spans each.
        for _ in 0..MOST {
            let begun = tracer.begin().unwrap();
            drop(begun.open("/p8broker.v1.TokenService/IssueToken", Remote::default(), "authenticate"));
        }
        let stop = CancellationToken::new();
        for _ in 0..2 {
            let filled = tokio::time::timeout(Duration::ZERO, export.gather(&stop)).await;
            assert_eq!((filled.ok(), export.batch.len()), (Some(true), MOST));
            export.batch.clear();
        }
        drop(tracer.begin().unwrap().open("/p8broker.v1.TokenService/IssueToken", Remote::default(), "authenticate"));
        assert!(tokio::time::timeout(Duration::ZERO, export.gather(&stop)).await.is_err(), "others may come");
    }

    #[test]
    fn headers_are_lines_and_a_broken_one_is_named_without_showing_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("headers");
        std::fs::write(&file, "Authorization: Bearer s3cret\n\nx-team:  games \n").unwrap();
        let read = headers(&file).unwrap();
        let names: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(names, [("authorization", "Bearer s3cret"), ("x-team", "games")]);
        assert!(!format!("{read:?}").contains("s3cret"));
        for broken in ["s3cret", "na me: s3cret", "name: s3cret\u{7f}", "name-bin: s3cret"] {
            std::fs::write(&file, format!("a: b\n{broken}\n")).unwrap();
            let error = headers(&file).unwrap_err().to_string();
            assert!(error.contains("line 2") && !error.contains("s3cret"), "{error}");
        }
    }
}
