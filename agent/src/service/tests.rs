use std::time::Duration;

use agent_api::codes::StatusExt as _;
use agent_api::proto::{exec_input, exec_output, sync_item};
use tokio_stream::StreamExt as _;

use super::*;
use crate::host::admission::Room;
use crate::meter::{MeterConfig, UsedNow, UsedProvider};
use crate::pod::spec::resources::Amounts;
use crate::pod::task::World;
use crate::testing::Rig;

#[derive(Debug)]
struct NoCounters;

#[tonic::async_trait]
impl UsedProvider for NoCounters {
    async fn used(&self, _: &str) -> Option<UsedNow> {
        None
    }
}

async fn service(rig: &Rig) -> Service {
    service_of(rig, rig.world("boot")).await
}

async fn service_of(rig: &Rig, world: Arc<World>) -> Service {
    let survivors = crate::recover::run(&world).await.unwrap();
    let epoch = world.ledger.epoch().unwrap();
    let amounts = Amounts { milli_cpu: 4000, memory: 4 << 30, ephemeral: 1 << 30 };
    let roster = Arc::new(Roster::new(world, Room { amounts, pods: 110, ..Room::default() }, epoch));
    roster.recovered(survivors).await;
    let dir = rig.state_dir();
    let images = image_snapshot::Images::open(image_snapshot::ImagesConfig::new(dir.join("images"))).unwrap();
    let meter = Meter::open(MeterConfig::new(dir.join("spool"), "host".to_owned()), Arc::new(NoCounters)).unwrap();
    let images = ImageStore::new(images, None);
    let prepared = Prepared::open(dir, Arc::new(images.clone())).unwrap();
    Service {
        roster,
        images,
        prepared: Arc::new(prepared),
        meter: Arc::new(meter),
        facts: Arc::new(Facts::read().unwrap()),
        labels: BTreeMap::new(),
        host_id: "host".to_owned(),
        pod_cidr: "10.88.0.0/16".to_owned(),
    }
}

#[tokio::test]
async fn a_host_tells_pressure_by_the_thresholds_that_it_is_given() {
    let told = async |text: &str| {
        let rig = Rig::new();
        let world = rig.world_with("boot", |world| world.thresholds = text.parse().unwrap());
        let conditions = service_of(&rig, world).await.host_status().await.conditions;
        ["MemoryPressure", "DiskPressure"].map(|name| conditions.iter().any(|one| one.r#type == name && one.status))
    };
    assert_eq!(told("memory.available<1Ei,nodefs.available<100%").await, [true, false]);
    assert_eq!(told("memory.available<0%,nodefs.available<1Ei").await, [false, true]);
}

fn wire(uid: &str, generation: u64, args: &[&str]) -> proto::Intent {
    let pod = serde_json::json!({
        "metadata": {"name": uid, "namespace": "n", "uid": uid},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "image:1", "args": args}]}
    });
    proto::Intent {
        uid: uid.to_owned(),
        generation,
        pod_json: pod.to_string().into_bytes().into(),
        source: "kubernetes".to_owned(),
        ..Default::default()
    }
}

async fn apply(service: &Service, epoch: u64, intent: proto::Intent) -> Result<proto::ApplyReply, Status> {
    let request = proto::ApplyRequest { epoch, intent: Some(intent) };
    service.apply(Request::new(request)).await.map(Response::into_inner)
}

async fn until(service: &Service, uid: &str, what: impl Fn(&proto::StatusUpdate) -> bool) -> proto::StatusUpdate {
    let mut updates = service.statuses();
    let found = async {
        while let Some(update) = updates.next().await {
            let update = update.unwrap();
            if update.uid == uid && what(&update) {
                return update;
            }
        }
        panic!("the stream ended");
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.expect("in time")
}

fn running(update: &proto::StatusUpdate) -> bool {
    let status: serde_json::Value = serde_json::from_slice(&update.status_json).unwrap();
    !status["containerStatuses"][0]["state"]["running"].is_null()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_from_intent_to_succeeded_to_forgotten() {
    let rig = Rig::new();
    let service = service(&rig).await;
    assert!(apply(&service, 1, wire("u", 1, &["exit", "0"])).await.unwrap().accepted);
    let done = until(&service, "u", |u| u.terminated).await;
    let status: serde_json::Value = serde_json::from_slice(&done.status_json).unwrap();
    assert_eq!(status["phase"], "Succeeded");
    let times = done.timeline.unwrap();
    assert!(times.released_boottime_ns > times.held_boottime_ns);
    let forget = proto::ForgetRequest { epoch: 1, uid: "u".to_owned() };
    service.forget(Request::new(forget)).await.unwrap();
    let mut updates = service.statuses();
    assert!(updates.next().await.unwrap().unwrap().snapshot_end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_epoch_is_fenced_everywhere() {
    let rig = Rig::new();
    let service = service(&rig).await;
    let hello =
        |epoch, protocol| service.hello(Request::new(proto::HelloRequest { epoch, protocol, ..Default::default() }));
    let reply = hello(5, 9).await.unwrap().into_inner();
    assert_eq!((reply.protocol, reply.host_id.as_str()), (agent_api::PROTOCOL, "host"));
    assert!(reply.host.unwrap().conditions.iter().any(|c| c.r#type == "Ready" && c.status));
    assert!(hello(4, 1).await.unwrap_err().is_fenced());
    assert!(apply(&service, 4, wire("u", 1, &["run"])).await.unwrap_err().is_fenced());
    let broken = proto::Intent { pod_json: "{".into(), ..wire("u", 1, &[]) };
    assert!(apply(&service, 4, broken).await.unwrap_err().is_fenced());
    assert_eq!(hello(6, 0).await.unwrap_err().error_code(), Code::ProtocolUnsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_pod_is_refused_by_name() {
    let rig = Rig::new();
    let service = service(&rig).await;
    for broken in [
        proto::Intent { pod_json: "{".into(), ..wire("u", 1, &[]) },
        proto::Intent { uid: "other".to_owned(), ..wire("u", 1, &[]) },
        proto::Intent { source: "moon".to_owned(), ..wire("u", 1, &[]) },
        proto::Intent { pod_json: r#"{"metadata":{"name":"p","namespace":"n"}}"#.into(), ..wire("u", 1, &[]) },
    ] {
        let reply = apply(&service, 1, broken).await.unwrap();
        assert!(!reply.accepted && reply.refused.unwrap().reason == "InvalidPod");
    }
}

fn items(list: Vec<sync_item::Item>) -> impl Stream<Item = Result<proto::SyncItem, Status>> + Unpin {
    tokio_stream::iter(list.into_iter().map(|item| Ok(proto::SyncItem { item: Some(item) })).collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_is_applied_only_when_it_came_whole() {
    use sync_item::Item::{Begin, End, Pod};
    let rig = Rig::new();
    let service = service(&rig).await;
    let begin = || Begin(proto::SyncBegin { epoch: 1, confirmed: vec![] });
    let pod = || Pod(wire("u", 1, &["run"]));
    for partial in [
        vec![],
        vec![pod()],
        vec![begin(), pod()],
        vec![begin(), pod(), End(proto::SyncEnd { pods: 2 })],
        vec![begin(), pod(), begin(), End(proto::SyncEnd { pods: 1 })],
    ] {
        let error = service.sync_set(items(partial)).await.unwrap_err();
        assert_eq!(error.error_code(), Code::SyncIncomplete);
        assert!(service.roster.world().board.all().is_empty());
    }
    let reply = service.sync_set(items(vec![begin(), pod(), End(proto::SyncEnd { pods: 1 })])).await.unwrap();
    assert_eq!(reply, proto::SyncReply::default());
    until(&service, "u", running).await;
    // A pod that cannot be read is wanted all the same.
    let broken = Pod(proto::Intent { pod_json: "{".into(), ..wire("u", 2, &[]) });
    let reply = service.sync_set(items(vec![begin(), broken, End(proto::SyncEnd { pods: 1 })])).await.unwrap();
    assert_eq!(reply.refused.len(), 1);
    assert!(!service.roster.world().board.get("u").unwrap().deleting);
    // An empty set removes one pod: that is within the brake.
    service.sync_set(items(vec![begin(), End(proto::SyncEnd { pods: 0 })])).await.unwrap();
    until(&service, "u", |u| u.terminated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ended_elsewhere_or_is_only_kept_is_not_started() {
    let rig = Rig::new();
    let service = service(&rig).await;
    assert!(apply(&service, 1, wire("kept", 0, &["run"])).await.unwrap().accepted);
    let mut ended = wire("ended", 1, &["run"]);
    let mut pod: serde_json::Value = serde_json::from_slice(&ended.pod_json).unwrap();
    pod["status"] = serde_json::json!({"phase": "Succeeded"});
    ended.pod_json = pod.to_string().into_bytes().into();
    assert!(apply(&service, 1, ended).await.unwrap().accepted);
    let update = until(&service, "ended", |u| u.terminated).await;
    assert_eq!(&update.status_json[..], br#"{"phase":"Succeeded"}"#);
    assert!(service.roster.world().board.get("kept").is_none());
    assert_eq!(rig.sandboxes.count("prepare"), 0);
}

async fn read(mut stream: Answers<proto::LogsChunk>) -> String {
    let mut out = Vec::new();
    while let Some(chunk) = stream.next().await {
        out.extend_from_slice(&chunk.unwrap().data);
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_read_followed_and_kept_until_forgotten() {
    let rig = Rig::new();
    let service = service(&rig).await;
    let asked = |follow, previous| proto::LogsRequest {
        uid: "u".to_owned(),
        container: "c".to_owned(),
        follow,
        previous,
        ..Default::default()
    };
    assert_eq!(service.read_logs(asked(false, false)).err().unwrap().error_code(), Code::NotFound);
    apply(&service, 1, wire("u", 1, &["run"])).await.unwrap();
    until(&service, "u", running).await;
    assert_eq!(read(service.read_logs(asked(false, false)).unwrap()).await, "c 0\n");
    assert_eq!(service.read_logs(asked(false, true)).err().unwrap().error_code(), Code::WrongState);
    let other = proto::LogsRequest { container: "x".to_owned(), ..asked(false, false) };
    assert_eq!(service.read_logs(other).err().unwrap().error_code(), Code::NotFound);
    let follower = tokio::spawn(read(service.read_logs(asked(true, false)).unwrap()));
    rig.sandboxes.end("u-0", "c", 0, false);
    let followed = tokio::time::timeout(Duration::from_secs(60), follower).await.expect("it ends").unwrap();
    assert_eq!(followed, "c 0\n");
    until(&service, "u", |u| u.terminated).await;
    assert_eq!(read(service.read_logs(asked(false, false)).unwrap()).await, "c 0\n");
}

async fn run(service: &Service, command: &[&str]) -> Result<(String, Option<proto::ExecExit>), Status> {
    let start = proto::ExecStart {
        uid: "u".to_owned(),
        container: "c".to_owned(),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        stdout: true,
        ..Default::default()
    };
    let input = proto::ExecInput { input: Some(exec_input::Input::Start(start)) };
    let mut outputs = service.run_exec(tokio_stream::iter(vec![Ok(input)])).await?;
    let (mut text, mut exit) = (String::new(), None);
    while let Some(output) = outputs.next().await {
        match output?.output {
            Some(exec_output::Output::Stdout(bytes)) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Some(exec_output::Output::Exit(found)) => exit = Some(found),
            _ => {}
        }
    }
    Ok((text, exit))
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_output_and_exit_code_and_says_why_not() {
    let rig = Rig::new();
    let service = service(&rig).await;
    assert_eq!(run(&service, &["echo"]).await.unwrap_err().error_code(), Code::NotFound);
    apply(&service, 1, wire("u", 1, &["run"])).await.unwrap();
    until(&service, "u", running).await;
    let (text, exit) = run(&service, &["echo", "3"]).await.unwrap();
    assert_eq!((text.as_str(), exit.unwrap().code), ("echo 3", 3));
    let (_, exit) = run(&service, &["missing"]).await.unwrap();
    let exit = exit.unwrap();
    assert!(exit.code == 127 && exit.error.contains("not found"));
    assert_eq!(run(&service, &[]).await.unwrap_err().error_code(), Code::InvalidArgument);
    rig.sandboxes.end("u-0", "c", 0, false);
    until(&service, "u", |u| u.terminated).await;
    assert_eq!(run(&service, &["echo"]).await.unwrap_err().error_code(), Code::WrongState);
}

fn attach_to(stdin: bool) -> exec_input::Input {
    let start = proto::ExecStart { uid: "u".to_owned(), stdin, stdout: true, stderr: true, ..Default::default() };
    exec_input::Input::Start(start)
}

/// An attachment that a test types into.
async fn attached(
    service: &Service,
    start: exec_input::Input,
) -> Result<(mpsc::Sender<exec_input::Input>, Answers<proto::ExecOutput>), Status> {
    let (inputs, stream) = mpsc::channel(4);
    inputs.send(start).await.unwrap();
    let stream = ReceiverStream::new(stream).map(|input| Ok(proto::ExecInput { input: Some(input) }));
    Ok((inputs, service.run_attach(stream).await?))
}

async fn heard(outputs: &mut Answers<proto::ExecOutput>) -> Option<exec_output::Output> {
    let output = tokio::time::timeout(Duration::from_secs(60), outputs.next()).await.expect("in time");
    output.map(|output| output.unwrap().output.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_carries_a_containers_own_streams_until_its_end() {
    use exec_input::Input::{Resize, Stdin};
    use exec_output::Output::{Exit, Started, Stdout};
    let rig = Rig::new();
    let service = service(&rig).await;
    let refused = |result: Result<_, Status>| result.err().map(|status: Status| status.error_code());
    assert_eq!(refused(attached(&service, attach_to(false)).await.map(drop)), Some(Code::NotFound));
    let mut intent = wire("u", 1, &["run"]);
    let mut pod: serde_json::Value = serde_json::from_slice(&intent.pod_json).unwrap();
    pod["spec"]["containers"][0]["stdin"] = true.into();
    intent.pod_json = pod.to_string().into_bytes().into();
    apply(&service, 1, intent).await.unwrap();
    until(&service, "u", running).await;
    let nothing = exec_input::Input::Start(proto::ExecStart { uid: "u".to_owned(), ..Default::default() });
    assert_eq!(refused(attached(&service, nothing).await.map(drop)), Some(Code::InvalidArgument));

    let (inputs, mut outputs) = attached(&service, attach_to(true)).await.unwrap();
    assert!(matches!(heard(&mut outputs).await, Some(Started(_))));
    inputs.send(Stdin("typed".into())).await.unwrap();
    assert_eq!(heard(&mut outputs).await, Some(Stdout("typed".into())));

    // Another is cut off; a third leaves: neither harms the first, nor the container.
    let (others, mut other) = attached(&service, attach_to(false)).await.unwrap();
    assert!(matches!(heard(&mut other).await, Some(Started(_))));
    others.send(Resize(proto::TerminalSize { columns: 300, rows: 1 })).await.unwrap();
    let Some(Exit(exit)) = heard(&mut other).await else { panic!("it is not cut off") };
    assert!(exit.error.contains("all of it is in the log"), "{exit:?}");
    drop(attached(&service, attach_to(true)).await.unwrap());
    inputs.send(Stdin("more".into())).await.unwrap();
    assert_eq!(heard(&mut outputs).await, Some(Stdout("more".into())));

    inputs.send(exec_input::Input::StdinEof(true)).await.unwrap();
    rig.sandboxes.end("u-0", "c", 7, false);
    assert_eq!(heard(&mut outputs).await, Some(Exit(proto::ExecExit { code: 0, error: String::new() })));
    assert_eq!(heard(&mut outputs).await, None);
    until(&service, "u", |u| u.terminated).await;
    assert_eq!(refused(attached(&service, attach_to(false)).await.map(drop)), Some(Code::WrongState));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_order_and_are_dropped_when_acknowledged() {
    let rig = Rig::new();
    let service = service(&rig).await;
    apply(&service, 1, wire("u", 1, &["exit", "0"])).await.unwrap();
    until(&service, "u", |u| u.terminated).await;
    let mut events = service.events(0);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let event = events.next().await.unwrap().unwrap();
        seen.push((event.seq, event.reason, event.field_path));
    }
    let reasons: Vec<&str> = seen.iter().map(|(_, reason, _)| reason.as_str()).collect();
    assert_eq!(reasons, ["Pulling", "Pulled", "Created", "Started"]);
    assert_eq!(seen[0].2, "spec.containers{c}");
    drop(service.events(seen[2].0));
    let mut again = service.events(0);
    assert_eq!(again.next().await.unwrap().unwrap().reason, "Started");
}
