//! The gRPC service: decodes a request, calls the snapshotter on a thread that may block, and encodes the reply.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use prost::Message;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, BoxStream, http};
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::{Kind, Result, Snapshot, SnapshotError, Snapshotter, wire};

/// The service's name, with which the paths of its calls begin.
const PREFIX: &str = "/containerd.services.snapshots.v1.Snapshots/";

/// Size from which a message of a listing is full, in bytes. With one snapshot more, it is still below gRPC's limit of
/// 4 MiB.
const FULL: usize = 64 << 10;

/// The reply to a request.
type Reply = BoxFuture<http::Response<Body>, Infallible>;

/// The service. Clones serve the same snapshots.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) snapshotter: Arc<Snapshotter>,
    /// Number of running calls.
    pub(super) calls: Arc<AtomicUsize>,
}

/// Counts a call while it exists.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(calls: &Arc<AtomicUsize>) -> Self {
        calls.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(calls))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl tonic::codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Reply {
        let counted = Counted::new(&self.calls);
        let reply = self.dispatch(request);
        Box::pin(async move {
            let reply = reply.await;
            drop(counted);
            reply
        })
    }
}

impl Service {
    fn dispatch(&self, request: http::Request<Body>) -> Reply {
        let snapshotter = Arc::clone(&self.snapshotter);
        match request.uri().path().strip_prefix(PREFIX) {
            Some("Prepare") => unary(snapshotter, request, |to, asked| prepare(to, Kind::Active, asked)),
            Some("View") => unary(snapshotter, request, |to, asked| prepare(to, Kind::View, asked)),
            Some("Mounts") => unary(snapshotter, request, mounts),
            Some("Commit") => unary(snapshotter, request, commit),
            Some("Remove") => unary(snapshotter, request, remove),
            Some("Stat") => unary(snapshotter, request, stat),
            Some("Update") => unary(snapshotter, request, update),
            Some("List") => list(snapshotter, request),
            Some("Usage") => unary(snapshotter, request, usage),
            Some("Cleanup") => unary(snapshotter, request, cleanup),
            _ => {
                let status = Status::unimplemented(format!("no such call: {}", request.uri().path()));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

fn prepare(to: &Snapshotter, kind: Kind, asked: wire::PrepareRequest) -> Result<wire::MountsResponse> {
    to.prepare(kind, &asked.key, &asked.parent, asked.labels).map(mounts_response)
}

fn mounts(to: &Snapshotter, asked: wire::KeyRequest) -> Result<wire::MountsResponse> {
    to.mounts(&asked.key).map(mounts_response)
}

fn mounts_response(mounts: Vec<super::Mount>) -> wire::MountsResponse {
    let message = |mount: super::Mount| wire::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    wire::MountsResponse { mounts: mounts.into_iter().map(message).collect() }
}

fn commit(to: &Snapshotter, asked: wire::CommitRequest) -> Result<wire::Empty> {
    to.commit(&asked.name, &asked.key, &asked.parent, asked.labels).map(|()| wire::Empty {})
}

fn remove(to: &Snapshotter, asked: wire::KeyRequest) -> Result<wire::Empty> {
    to.remove(&asked.key).map(|()| wire::Empty {})
}

fn stat(to: &Snapshotter, asked: wire::KeyRequest) -> Result<wire::InfoResponse> {
    to.stat(&asked.key).map(|snapshot| wire::InfoResponse { info: Some(info(snapshot)) })
}

fn update(to: &Snapshotter, asked: wire::UpdateRequest) -> Result<wire::InfoResponse> {
    let wanted = asked.info.unwrap_or_default();
    let fields = asked.update_mask.unwrap_or_default().paths;
    let updated = to.update(&wanted.name, &wanted.labels, &fields)?;
    Ok(wire::InfoResponse { info: Some(info(updated)) })
}

fn usage(to: &Snapshotter, asked: wire::KeyRequest) -> Result<wire::UsageResponse> {
    let usage = to.usage(&asked.key)?;
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Ok(wire::UsageResponse { size: number(usage.size), inodes: number(usage.inodes) })
}

fn cleanup(to: &Snapshotter, _: wire::Empty) -> Result<wire::Empty> {
    to.cleanup().map(|()| wire::Empty {})
}

fn info(snapshot: Snapshot) -> wire::Info {
    let kind = match snapshot.kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    };
    let timestamp = |at: super::Moment| Some(wire::Timestamp { seconds: at.seconds, nanos: at.nanos });
    wire::Info {
        name: snapshot.name,
        parent: snapshot.parent,
        kind: kind.into(),
        created_at: timestamp(snapshot.created),
        updated_at: timestamp(snapshot.updated),
        labels: snapshot.labels,
    }
}

/// A call of the snapshotter, with the request `M` and the answer `R`.
struct Call<M, R> {
    snapshotter: Arc<Snapshotter>,
    path: String,
    call: fn(&Snapshotter, M) -> Result<R>,
}

fn unary<M, R>(
    snapshotter: Arc<Snapshotter>,
    request: http::Request<Body>,
    call: fn(&Snapshotter, M) -> Result<R>,
) -> Reply
where
    M: Message + Default + 'static,
    R: Message + Default + 'static,
{
    let path = request.uri().path().to_owned();
    Box::pin(async move {
        let call = Call { snapshotter, path, call };
        Ok(Grpc::new(ProstCodec::<R, M>::default()).unary(call, request).await)
    })
}

impl<M: Message + Default + 'static, R: Message + Default + 'static> UnaryService<M> for Call<M, R> {
    type Response = R;
    type Future = BoxFuture<Response<R>, Status>;

    fn call(&mut self, request: Request<M>) -> Self::Future {
        let (snapshotter, path, call) = (Arc::clone(&self.snapshotter), self.path.clone(), self.call);
        let asked = request.into_inner();
        Box::pin(async move { blocking(path, move || call(&snapshotter, asked)).await.map(Response::new) })
    }
}

/// `List`, which answers with a stream of messages.
struct List(Arc<Snapshotter>);

fn list(snapshotter: Arc<Snapshotter>, request: http::Request<Body>) -> Reply {
    Box::pin(async move {
        let codec = ProstCodec::<wire::ListResponse, wire::ListRequest>::default();
        Ok(Grpc::new(codec).server_streaming(List(snapshotter), request).await)
    })
}

impl ServerStreamingService<wire::ListRequest> for List {
    type Response = wire::ListResponse;
    type ResponseStream = BoxStream<wire::ListResponse>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<wire::ListRequest>) -> Self::Future {
        let snapshotter = Arc::clone(&self.0);
        let filters = request.into_inner().filters;
        Box::pin(async move {
            let found = blocking(format!("{PREFIX}List"), move || snapshotter.list(&filters)).await?;
            let stream: Self::ResponseStream = Box::pin(tokio_stream::iter(messages(found).into_iter().map(Ok)));
            Ok(Response::new(stream))
        })
    }
}

/// A listing's messages, of moderate size.
fn messages(found: Vec<Snapshot>) -> Vec<wire::ListResponse> {
    let mut messages = Vec::new();
    let (mut part, mut size) = (Vec::new(), 0);
    for info in found.into_iter().map(info) {
        size += info.encoded_len();
        part.push(info);
        if size >= FULL {
            messages.push(wire::ListResponse { info: std::mem::take(&mut part) });
            size = 0;
        }
    }
    if !part.is_empty() {
        messages.push(wire::ListResponse { info: part });
    }
    messages
}

/// Calls on a thread that may block. If the client goes away in the meantime, the call is still completed.
async fn blocking<R: Send + 'static>(
    path: String,
    call: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R, Status> {
    let call_name = path.strip_prefix(PREFIX).unwrap_or(&path).to_owned();
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(reply)) => {
            tracing::debug!("{call_name}: done");
            Ok(reply)
        }
        Ok(Err(error)) => {
            let status = Status::new(code(&error), error.to_string());
            match error {
                // containerd uses these errors to find out what exists.
                SnapshotError::NotFound(_) | SnapshotError::Exists(_) => tracing::debug!("{call_name}: {error}"),
                _ => tracing::warn!("{call_name}: {error}"),
            }
            Err(status)
        }
        Err(error) => {
            tracing::error!("{call_name}: {error}");
            Err(Status::internal("the snapshotter failed; its log says more"))
        }
    }
}

fn code(error: &SnapshotError) -> Code {
    match error {
        SnapshotError::NotFound(_) => Code::NotFound,
        SnapshotError::Exists(_) => Code::AlreadyExists,
        SnapshotError::Invalid { .. } => Code::InvalidArgument,
        SnapshotError::Refused { .. } => Code::FailedPrecondition,
        SnapshotError::Io { .. } | SnapshotError::Metadata { .. } if error.is_full() => Code::ResourceExhausted,
        SnapshotError::Io { .. } | SnapshotError::Metadata { .. } => Code::Internal,
    }
}
