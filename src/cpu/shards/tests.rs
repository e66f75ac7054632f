//! A crew in one process: what it computes must be what one instance computes, bit for bit.

use super::*;
use crate::backend::{Backend, KvType, Outputs, Step};
use crate::cpu::Cpu;
use crate::cpu::tests::{self, IDS};
use pollster::block_on;
use std::sync::{Arc, Mutex};

/// Shards on this thread.
struct Local {
    shards: Vec<Shard>,
    answers: Vec<Vec<u8>>,
    room: usize,
    /// Requests until a shard is lost.
    left: Arc<Mutex<Option<usize>>>,
}

impl Local {
    fn new(count: usize, room: usize) -> Self {
        let shards = (0..count).map(|_| Shard::new().unwrap()).collect();
        Local { shards, answers: vec![NOTHING.to_vec(); count], room, left: Arc::default() }
    }
}

impl Carrier for Local {
    fn count(&self) -> usize {
        self.shards.len()
    }

    fn room(&self) -> usize {
        self.room
    }

    fn post(&mut self, to: Option<usize>, request: &[u8]) -> Result<(), BackendError> {
        assert!(request.len() <= self.room);
        if let Some(left) = self.left.lock().unwrap().as_mut() {
            if *left == 0 {
                return Err(BackendError::WorkerLost { reason: "it was told to go".into() });
            }
            *left -= 1;
        }
        for (i, (shard, answer)) in self.shards.iter_mut().zip(&mut self.answers).enumerate() {
            if to.is_none_or(|to| to == i) && answer.starts_with(&NOTHING) {
                *answer = shard.answer(request);
                assert!(answer.len() <= self.room);
            }
        }
        Ok(())
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Result<Vec<Vec<u8>>, BackendError>> {
        let fresh = vec![NOTHING.to_vec(); self.shards.len()];
        Poll::Ready(Ok(std::mem::replace(&mut self.answers, fresh)))
    }
}

/// The model of [`tests`] on a machine of `count` shards, or on one alone.
fn model(carrier: Option<Local>, rule: ActQuant, block: Option<u32>) -> Cpu {
    let mut cpu = Cpu::new(Some(1)).unwrap();
    if let Some(carrier) = carrier {
        cpu.share(Box::new(carrier));
    }
    tests::load(cpu, rule, block, KvType::F16, 32)
}

#[test]
fn a_crew_computes_the_bits_of_one_instance() {
    let run = |cpu: &mut Cpu| {
        let mut logits = tests::forward(cpu, &IDS, 0, Outputs::All);
        logits.extend(tests::forward(cpu, &IDS[..1], 8, Outputs::Last));
        let step = Step { tokens: &IDS[..3], pos: 9, outputs: Outputs::Last };
        block_on(cpu.trace(step, &mut |_, values| logits.extend(values))).unwrap();
        logits.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    for rule in [ActQuant::PerToken, ActQuant::Block256, ActQuant::Block32] {
        for block in [None, Some(64)] {
            let alone = run(&mut model(None, rule, block));
            // Rooms for all tokens at once, and for a few a round.
            for (count, room) in [(1, 1 << 20), (2, 1 << 20), (1, 2500), (4, 3000)] {
                let shared = run(&mut model(Some(Local::new(count, room)), rule, block));
                assert!(alone == shared, "{rule:?} {block:?}: {count} shards, {room} bytes");
            }
        }
    }
}

#[test]
fn rows_are_held_once() {
    for n in [1, 15, 16, 33, 2560, 128_256] {
        for of in 1..=5 {
            let mut next = 0;
            for i in 0..of {
                let rows = share(n, i, of);
                assert_eq!(rows.start, next);
                next = rows.end;
            }
            assert_eq!(next, n);
        }
    }
}

#[test]
fn a_lost_shard_is_an_error_and_stays_one() {
    let carrier = Local::new(2, 1 << 20);
    let left = carrier.left.clone();
    let mut cpu = model(Some(carrier), ActQuant::PerToken, None);
    *left.lock().unwrap() = Some(1);
    let step = Step { tokens: &IDS, pos: 0, outputs: Outputs::Last };
    for _ in 0..2 {
        let error = block_on(cpu.forward(step)).unwrap_err();
        assert!(matches!(error, BackendError::WorkerLost { .. }), "{error}");
    }
}

#[test]
fn what_a_shard_cannot_do_is_told() {
    let mut shard = Shard::new().unwrap();
    let mut ask = |request: Request, follows: &[u8]| {
        let mut bytes = Vec::new();
        request.encode(&[follows], &mut bytes).unwrap();
        decode_answer(&shard.answer(&bytes))
    };
    let kind = WeightKind::Ternary { n: 3, k: 64, block: None };
    assert_eq!(ask(Request::Allocate(vec![kind]), &[]), Ok(vec![]));
    let linear = |id, rule, tokens| Request::Linear { id, rule, tokens };
    for (id, rule, tokens, bytes) in [
        (0, Some(ActQuant::PerToken), 1, 67),
        (0, Some(ActQuant::PerToken), usize::MAX, 68),
        (0, None, 1, 68),
        (0, None, usize::MAX / 2, 0),
        (1, None, 1, 256),
    ] {
        assert!(ask(linear(id, rule, tokens), &vec![0; bytes]).is_err(), "{id} {rule:?} {tokens}");
    }
    assert!(ask(linear(0, Some(ActQuant::PerToken), 1), &[0; 68]).is_ok());
    assert!(ask(Request::Rows { id: 0, rows: vec![3] }, &[]).is_err());
    assert!(ask(Request::Write { id: 0, part: WeightPart::Data, offset: 40 }, &[0; 16]).is_err());
    for bytes in [&[][..], &[9, 0, 0, 0, 1], &[2, 0, 0, 0, b'{', b'}']] {
        assert!(decode_answer(&shard.answer(bytes)).is_err());
    }
    assert!(decode_answer(&[]).is_err());
}
