//! Rows of the matrices spread over instances of this engine that share no memory: how a processor
//! without threads of its own (WebAssembly) gets to use several cores.
//!
//! Every matrix is cut by rows, and each instance holds its rows only. For a product the caller sends
//! the activations around as bytes, computes its own rows meanwhile, and puts the others' in their
//! place; a row is summed where it is held, so that the bits are those of one instance. How the
//! bytes travel is the business of a [`Carrier`].

use super::embed;
use super::kernels::{self, Isa};
use super::matrix::Matrix;
use super::quantize::QuantRows;
use super::rows::{RowsMut, RowsRef};
use super::run::{Machine, Program};
use super::threads::Threads;
use super::weights::{self, Weight};
use crate::backend::BackendError;
use crate::plan::{ActQuant, BufId, Op, Slice, WeightId, WeightKind, WeightPart, WeightSpec};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::task::{Context, Poll};

/// Rows that belong together: what the kernels take at a time.
const TILE: u64 = 16;

/// More than what a request has besides the numbers.
const HEAD: usize = 256;

/// What may be kept where a [`Carrier`] is: natively only what may change threads; the values of
/// JavaScript, where there is only one, may not.
#[cfg(not(target_arch = "wasm32"))]
pub trait Local: Send + Sync {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync> Local for T {}
/// What may be kept where a [`Carrier`] is.
#[cfg(target_arch = "wasm32")]
pub trait Local {}
#[cfg(target_arch = "wasm32")]
impl<T> Local for T {}

/// Success, without values.
pub const NOTHING: [u8; 4] = [0; 4];

/// Takes requests to the shards and brings their answers.
pub trait Carrier: Local {
    /// Number of shards, the caller not counted.
    fn count(&self) -> usize;

    /// Bytes that a request or an answer may have.
    fn room(&self) -> usize;

    /// Sends a request for [`Shard::answer`] to one shard, or to all.
    ///
    /// # Errors
    /// A shard is lost.
    fn post(&mut self, to: Option<usize>, request: &[u8]) -> Result<(), BackendError>;

    /// Ready when all requests have been answered, with each shard's last answer; one that is no
    /// success is not followed by others, and a shard that was not asked answers [`NOTHING`].
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Vec<Vec<u8>>, BackendError>>;
}

/// What a shard is asked. Numbers follow as bytes.
#[derive(Serialize, Deserialize)]
enum Request {
    /// Make room for these weights.
    Allocate(Vec<WeightKind>),
    /// Write what follows to a part of a weight.
    Write { id: u32, part: WeightPart, offset: u64 },
    /// Answer with `[T, N]`, the product with your rows of what follows: `q [T, stride]` and
    /// `d [T, groups]`, or without a rule f32 `[T, K]`.
    Linear { id: u32, rule: Option<ActQuant>, tokens: usize },
    /// Answer with these rows of the table, as f32.
    Rows { id: u32, rows: Vec<u32> },
}

impl Request {
    /// Length of the head, head, `follows`.
    fn encode(&self, follows: &[&[u8]], into: &mut Vec<u8>) -> Result<(), BackendError> {
        into.clear();
        into.extend([0; 4]);
        serde_json::to_writer(&mut *into, self).map_err(|e| rejected(e.to_string()))?;
        let head = (into.len() - 4) as u32;
        into[..4].copy_from_slice(&head.to_le_bytes());
        follows.iter().for_each(|bytes| into.extend_from_slice(bytes));
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Option<(Request, &[u8])> {
        let (head, rest) = bytes.split_first_chunk()?;
        let (head, follows) = rest.split_at_checked(u32::from_le_bytes(*head) as usize)?;
        Some((serde_json::from_slice(head).ok()?, follows))
    }
}

fn rejected(reason: String) -> BackendError {
    BackendError::Rejected { what: "a request to a worker".into(), reason }
}

/// Rows of a matrix of `n` that instance `i` of `of` holds.
fn share(n: u32, i: usize, of: usize) -> Range<u32> {
    let edge = |i: usize| match i {
        _ if i == of => n,
        _ => (u64::from(n) * i as u64 / of as u64 / TILE * TILE) as u32,
    };
    edge(i)..edge(i + 1)
}

/// The part of a weight that instance `i` of `of` holds; vectors stay with the first.
fn part_of(kind: WeightKind, i: usize, of: usize) -> (Range<u32>, WeightKind) {
    match kind {
        WeightKind::Vector { len } if i == 0 => (0..1, WeightKind::Vector { len }),
        WeightKind::Vector { .. } => (0..0, WeightKind::Vector { len: 0 }),
        WeightKind::Ternary { n, k, block } => {
            let rows = share(n, i, of);
            (rows.clone(), WeightKind::Ternary { n: rows.len() as u32, k, block })
        }
        WeightKind::Matrix { n, k, dtype } => {
            let rows = share(n, i, of);
            (rows.clone(), WeightKind::Matrix { n: rows.len() as u32, k, dtype })
        }
    }
}

/// The caller's side.
pub(super) struct Crew {
    carrier: Box<dyn Carrier>,
    /// The weights as the plan has them.
    whole: Vec<WeightKind>,
    request: Vec<u8>,
}

impl Crew {
    pub fn new(carrier: Box<dyn Carrier>) -> Self {
        Crew { carrier, whole: Vec::new(), request: Vec::new() }
    }

    /// Instances, the caller counted.
    pub fn size(&self) -> usize {
        self.carrier.count() + 1
    }

    /// Bytes that the shards hold.
    pub fn bytes(&self) -> u64 {
        let own = |&kind: &WeightKind| part_of(kind, 0, self.size()).1.bytes();
        self.whole.iter().map(|kind| kind.bytes() - own(kind)).sum()
    }

    /// The weights as the plan has them.
    pub fn whole(&self) -> &[WeightKind] {
        &self.whole
    }

    /// Makes room in the shards; returns what the caller is to hold itself.
    pub async fn allocate(
        &mut self,
        weights: &[WeightSpec],
    ) -> Result<Vec<WeightSpec>, BackendError> {
        let of = self.size();
        self.whole = weights.iter().map(|w| w.kind).collect();
        for i in 1..of {
            let kinds = self.whole.iter().map(|&kind| part_of(kind, i, of).1).collect();
            Request::Allocate(kinds).encode(&[], &mut self.request)?;
            self.carrier.post(Some(i - 1), &self.request)?;
        }
        self.collect().await?;
        let own = weights
            .iter()
            .map(|w| WeightSpec { name: w.name.clone(), kind: part_of(w.kind, 0, of).1 });
        Ok(own.collect())
    }

    /// Sends the shards what is theirs of some bytes of a part; returns the caller's own.
    pub fn write<'a>(
        &mut self,
        id: WeightId,
        part: WeightPart,
        offset: u64,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], BackendError> {
        let invalid = || BackendError::InvalidCall {
            reason: format!("{} bytes at {offset} of {part:?} of weight {}", bytes.len(), id.0),
        };
        let kind = *self.whole.get(id.0 as usize).ok_or_else(invalid)?;
        let end = offset.checked_add(bytes.len() as u64).ok_or_else(invalid)?;
        if end > kind.part_bytes(part) {
            return Err(invalid());
        }
        let of = self.size();
        let mut own = &bytes[..0];
        for i in 0..of {
            let (rows, held) = part_of(kind, i, of);
            let row_bytes = held.row_bytes(part);
            let start = u64::from(rows.start) * row_bytes;
            let (from, to) = (offset.max(start), end.min(u64::from(rows.end) * row_bytes));
            if from >= to {
                continue;
            }
            let theirs = &bytes[(from - offset) as usize..(to - offset) as usize];
            if i == 0 {
                own = theirs;
                continue;
            }
            let step = self.carrier.room().saturating_sub(HEAD).max(1);
            for (at, piece) in (0..).step_by(step).zip(theirs.chunks(step)) {
                let write = Request::Write { id: id.0, part, offset: from - start + at };
                write.encode(&[piece], &mut self.request)?;
                self.carrier.post(Some(i - 1), &self.request)?;
            }
        }
        Ok(own)
    }

    /// Waits for the shards, and hands on what they could not do.
    pub async fn collect(&mut self) -> Result<Vec<Vec<f32>>, BackendError> {
        let answers = std::future::poll_fn(|context| self.carrier.poll(context)).await?;
        answers.iter().map(|answer| decode_answer(answer)).collect()
    }

    /// Runs operation `i` of a step with the shards' help.
    pub async fn run(
        &mut self,
        program: &mut Program,
        machine: Machine<'_>,
        ids: &[u32],
        i: usize,
    ) -> Result<(), BackendError> {
        match program.plan.ops[i] {
            Op::Embed { table, out } => self.embed(program, machine, ids, i, table, out).await,
            Op::TernaryLinear { x, weight, out } => {
                self.linear(program, machine, ids, i, x, weight, out).await
            }
            Op::DenseLinear { x, weight, out } => {
                self.linear(program, machine, ids, i, x, weight, out).await
            }
            _ => program.run(machine, ids, i),
        }
    }

    async fn embed(
        &mut self,
        program: &mut Program,
        machine: Machine<'_>,
        ids: &[u32],
        i: usize,
        table: WeightId,
        out: BufId,
    ) -> Result<(), BackendError> {
        program.run(machine, ids, i)?;
        let (n, dim) = self.whole[table.0 as usize].shape();
        let (of, row_bytes) = (self.size(), dim as usize * 4);
        let step = (self.carrier.room().saturating_sub(HEAD) / row_bytes.max(1)).max(1);
        for (at, some) in (0..).step_by(step).zip(ids.chunks(step)) {
            for shard in 1..of {
                let held = share(n, shard, of);
                let rows = some.iter().filter(|&id| held.contains(id)).map(|id| id - held.start);
                let rows: Vec<_> = rows.collect();
                if rows.is_empty() {
                    continue;
                }
                let request = Request::Rows { id: table.0, rows };
                request.encode(&[], &mut self.request)?;
                self.post(Some(shard - 1), some.len() * row_bytes)?;
            }
            let out = program.plan.whole(out);
            for (shard, values) in self.collect().await?.iter().enumerate() {
                let held = share(n, shard + 1, of);
                let mut rows = values.chunks_exact(dim as usize);
                for t in (0..some.len()).filter(|&t| held.contains(&some[t])) {
                    program.place(out, at + t, 0, rows.next().ok_or_else(wrong_answer)?);
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // One operation, taken apart.
    async fn linear(
        &mut self,
        program: &mut Program,
        machine: Machine<'_>,
        ids: &[u32],
        i: usize,
        x: BufId,
        weight: WeightId,
        out: Slice,
    ) -> Result<(), BackendError> {
        let (n, _) = self.whole[weight.0 as usize].shape();
        let (tokens, of) = (program.rows_of(x), self.size());
        if tokens == 0 {
            return Ok(());
        }
        // As many tokens a round as there is room for on either way.
        let [a, b] = program.activations(x, 0..1).1;
        let row_bytes = (a.len() + b.len()).max(4 * (n as usize / of + 2 * TILE as usize));
        let step = (self.carrier.room().saturating_sub(HEAD) / row_bytes).max(1);
        for (round, start) in (0..tokens).step_by(step).enumerate() {
            let some = start..(start + step).min(tokens);
            let (rule, follows) = program.activations(x, some.clone());
            let linear = Request::Linear { id: weight.0, rule, tokens: some.len() };
            linear.encode(&follows, &mut self.request)?;
            self.post(None, some.len() * 4 * (n as usize / of))?;
            if round == 0 {
                program.run(machine, ids, i)?;
            }
            for (shard, values) in self.collect().await?.iter().enumerate() {
                let columns = share(n, shard + 1, of);
                if values.len() != columns.len() * some.len() {
                    return Err(wrong_answer());
                }
                let rows = values.chunks_exact(columns.len().max(1));
                for (t, row) in some.clone().zip(rows) {
                    program.place(out, t, columns.start as usize, row);
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, to: Option<usize>, answer_bytes: usize) -> Result<(), BackendError> {
        if self.request.len().max(answer_bytes) > self.carrier.room() {
            let reason = format!("a row needs more than {} bytes", self.carrier.room());
            return Err(BackendError::Unsupported { reason });
        }
        self.carrier.post(to, &self.request)
    }
}

/// A shard that answers something else than what it was asked for.
fn wrong_answer() -> BackendError {
    rejected("its answer has another length".into())
}

/// Rows of matrices, and the products with them.
pub struct Shard {
    isa: Isa,
    threads: Threads,
    weights: Vec<Weight>,
}

impl Shard {
    /// A shard without weights.
    ///
    /// # Errors
    /// As for [`Cpu::new`](super::Cpu::new).
    pub fn new() -> Result<Self, BackendError> {
        let (isa, threads) = (Isa::detect(), Threads::new(Some(1))?);
        Ok(Shard { isa, threads, weights: Vec::new() })
    }

    /// Does what a request asks; the answer is 0 and the values, or 1 and what is wrong.
    pub fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let answer = match Request::decode(request) {
            Some((request, follows)) => self.run(request, follows),
            None => Err(rejected("it cannot be read".into())),
        };
        match answer {
            Ok(values) => {
                let mut answer = Vec::with_capacity(4 * values.len() + 4);
                answer.extend(NOTHING);
                answer.extend_from_slice(bytemuck::cast_slice(&values));
                answer
            }
            Err(error) => [&[1, 0, 0, 0], error.to_string().as_bytes()].concat(),
        }
    }

    fn run(&mut self, request: Request, follows: &[u8]) -> Result<Vec<f32>, BackendError> {
        match request {
            Request::Allocate(kinds) => {
                self.weights.clear();
                let spec = |(i, kind)| WeightSpec { name: format!("weight {i}"), kind };
                let specs: Vec<_> = kinds.into_iter().enumerate().map(spec).collect();
                self.weights = weights::allocate(&specs)?;
                Ok(Vec::new())
            }
            Request::Write { id, part, offset } => {
                let weight = self.weights.get_mut(id as usize).ok_or_else(unreadable)?;
                weight.write(part, offset, follows)?;
                Ok(Vec::new())
            }
            Request::Linear { id, rule, tokens } => self.linear(id, rule, tokens, follows),
            Request::Rows { id, rows } => self.rows(id, &rows),
        }
    }

    fn linear(
        &self,
        id: u32,
        rule: Option<ActQuant>,
        tokens: usize,
        follows: &[u8],
    ) -> Result<Vec<f32>, BackendError> {
        let (weight, matrix) = self.matrix(id)?;
        let (n, k) = weight.kind.shape();
        let whole = |dim| Slice { buf: BufId(0), at: 0, dim };
        let mut y = vec![0.0; tokens.checked_mul(n as usize).ok_or_else(unreadable)?];
        if y.is_empty() {
            return Ok(y);
        }
        let out = RowsMut::new(&mut y, n as usize, whole(n), tokens);
        if let (Matrix::Ternary(w), Some(rule)) = (matrix, rule) {
            let mut x = QuantRows::new(rule, k as usize);
            x.read(tokens, follows).ok_or_else(unreadable)?;
            kernels::ternary_linear(self.isa, &self.threads, &x, w, &out);
            return Ok(y);
        }
        let x: Vec<f32> = floats(follows);
        if rule.is_some() || Some(x.len()) != tokens.checked_mul(k as usize) {
            return Err(unreadable());
        }
        let x = RowsRef::new(&x, k as usize, whole(k), tokens);
        match matrix {
            Matrix::Ternary(w) => {
                kernels::ternary_linear_f32(self.isa, &self.threads, x, w, &out);
            }
            Matrix::Dense(w) => kernels::dense_linear(self.isa, &self.threads, x, w, &out),
        }
        Ok(y)
    }

    fn rows(&self, id: u32, rows: &[u32]) -> Result<Vec<f32>, BackendError> {
        let (weight, table) = self.matrix(id)?;
        let (n, k) = weight.kind.shape();
        let mut y = vec![0.0; rows.len() * k as usize];
        for (&row, y) in rows.iter().zip(y.chunks_exact_mut(k as usize)) {
            if row >= n {
                return Err(unreadable());
            }
            embed::embed(table, row as usize, y);
        }
        Ok(y)
    }

    fn matrix(&self, id: u32) -> Result<(&Weight, Matrix<'_>), BackendError> {
        let weight = self.weights.get(id as usize).ok_or_else(unreadable)?;
        Ok((weight, weight.matrix().ok_or_else(unreadable)?))
    }
}

fn unreadable() -> BackendError {
    rejected("it does not fit the weights".into())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// What [`Shard::answer`] wrote.
fn decode_answer(answer: &[u8]) -> Result<Vec<f32>, BackendError> {
    match answer.split_first_chunk() {
        Some((&NOTHING, values)) => Ok(floats(values)),
        Some((_, reason)) => Err(rejected(String::from_utf8_lossy(reason).into_owned())),
        None => Err(wrong_answer()),
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;
