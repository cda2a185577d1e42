use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PATH: &str = "/p8broker.v1.TokenService/IssueToken";

fn tracer(ratio: f64) -> (Tracer, mpsc::Receiver<SpanData>, IntCounter) {
    let dropped = IntCounter::new("dropped", "of a test").unwrap();
    let (tracer, queue) = Tracer::new(ratio, dropped.clone());
    (tracer, queue, dropped)
}

fn open(tracer: &Tracer, parent: Option<&str>) -> Trace {
    let remote = Remote { parent, state: None };
    tracer.begin().map(|begun| begun.open(PATH, remote, "authenticate")).unwrap_or_default()
}

fn ended(queue: &mut mpsc::Receiver<SpanData>) -> Vec<SpanData> {
    std::iter::from_fn(|| queue.try_recv().ok()).collect()
}

#[test]
fn without_a_tracer_there_is_no_trace() {
    let trace = open(&Tracer::default(), Some(PARENT));
    assert!(!trace.is_sampled());
}

#[test]
fn a_callers_span_decides_and_without_one_the_ratio_does() {
    let (none, mut queue, _) = tracer(0.0);
    let (all, _all_queue, _) = tracer(1.0);
    assert!(open(&none, Some(PARENT)).is_sampled());
    assert!(!open(&none, None).is_sampled());
    assert!(!open(&all, Some(&PARENT.replace("b7-01", "b7-00"))).is_sampled());
    assert!(open(&all, None).is_sampled());
    // What is no traceparent is none.
    for broken in
        ["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", &PARENT.to_uppercase(), &"0".repeat(9000)]
    {
        assert!(!open(&none, Some(broken)).is_sampled(), "{broken}");
    }
    assert_eq!(ended(&mut queue).len(), 2, "of the only one that was sampled");
}

#[test]
fn a_span_goes_under_the_callers_and_steps_go_under_it() {
    let (tracer, mut queue, _) = tracer(0.0);
    let trace = open(&tracer, Some(PARENT));
    trace.note(|| [Fact::Reason("NO_POLICY")]);
    drop(trace);
    let spans = ended(&mut queue);
    let [first, rpc] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(rpc.name, PATH.trim_start_matches('/'));
    assert_eq!(rpc.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert!(rpc.parent_span_is_remote);
    assert_eq!(first.name, "authenticate");
    assert_eq!(first.parent_span_id, rpc.span_context.span_id());
    assert_eq!(first.start_time, rpc.start_time);
    for span in &spans {
        assert_eq!(span.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }
    assert!(rpc.attributes.contains(&KeyValue::new("p8broker.reason", "NO_POLICY")));
}

#[tokio::test]
async fn steps_find_the_trace_of_the_task_that_they_work_for() {
    let (tracer, mut queue, _) = tracer(1.0);
    drop(step("nowhere"));
    let trace = open(&tracer, None);
    trace
        .carry(async {
            drop(step("here"));
            let outer = step("outer");
            drop(outer.within().step("inner"));
            drop(outer);
            let elsewhere = carried(async { drop(step("there")) });
            #[expect(clippy::disallowed_methods, reason = "a test of what another task does")]
            tokio::spawn(elsewhere).await.unwrap();
        })
        .await;
    drop(step("nowhere"));
    drop(trace);
    let names: Vec<_> = ended(&mut queue).into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["authenticate", "here", "inner", "outer", "there", PATH.trim_start_matches('/')]);
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (tracer, mut queue, dropped) = tracer(1.0);
    for _ in 0..QUEUE {
        drop(open(&tracer, None));
    }
    assert_eq!(dropped.get(), QUEUE as u64, "two spans each, and room for half of them");
    assert_eq!(ended(&mut queue).len(), QUEUE);
}
