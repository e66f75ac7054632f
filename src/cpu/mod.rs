//! The CPU as a [`Backend`]: an interpreter of plans over one plain twin a
//! kernel, and fast kernels behind run-time dispatch where a profile says so.
//!
//! Each file named after an operation ([`Op::stem`](crate::plan::Op::stem)) holds its **twin**: the
//! readable function that says what the operation computes. Twins are the oracle for every other
//! implementation (SIMD, shaders); where sums of floats are concerned they add in f64.
//! They trust the shapes of their arguments: the interpreter has checked the plan.
//!
//! May import: `backend`, `plan`, `sampling`, `ternary`.

use crate::backend::{
    Backend, BackendError, Caps, Decode, Outputs, RunOptions, Step, check_targets,
};
use crate::plan::{Plan, WeightId, WeightPart, WeightSpec};
use run::{Machine, Program};
use shards::Crew;
use threads::Threads;
use weights::Weight;

// The twins are public for the tests of other rooms; they are no part of the crate's interface.
#[doc(hidden)]
pub mod add;
#[doc(hidden)]
pub mod attention;
mod check;
#[doc(hidden)]
pub mod cross_entropy;
#[doc(hidden)]
pub mod dense_linear;
#[doc(hidden)]
pub mod embed;
#[doc(hidden)]
pub mod gated_act;
#[doc(hidden)]
pub mod kernels;
#[doc(hidden)]
pub mod kv_append;
#[doc(hidden)]
pub mod matrix;
#[doc(hidden)]
pub mod quantize;
#[doc(hidden)]
pub mod rms_norm;
#[doc(hidden)]
pub mod rope;
mod rows;
mod run;
mod sample;
mod shards;
mod simd;
#[doc(hidden)]
pub mod take_outputs;
#[doc(hidden)]
pub mod ternary_linear;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;
mod threads;
mod weights;
mod wide;

pub use kernels::Isa;
pub use sample::sample;
pub use shards::{Carrier, NOTHING, Shard};

/// Stands for a token that is not known, in a history that was rewound past its end.
const UNKNOWN_TOKEN: u32 = u32::MAX;

/// The processor.
pub struct Cpu {
    caps: Caps,
    isa: Isa,
    threads: Threads,
    weights: Vec<Weight>,
    /// Instances that hold the rows of the matrices that `weights` do not.
    crew: Option<Crew>,
    program: Option<Program>,
    /// Tokens by position, for the penalties.
    history: Vec<u32>,
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, BackendError> {
    Err(BackendError::InvalidCall { reason: reason.into() })
}

impl Cpu {
    /// The processor with `threads` threads (by default one a core) and the instructions that the
    /// environment variable `BITNET_ISA` names (by default the best), such as `avx2`.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] when the threads cannot be started,
    /// [`BackendError::Unsupported`] when the processor has no instructions of that name.
    pub fn new(threads: Option<usize>) -> Result<Self, BackendError> {
        let isa = match std::env::var("BITNET_ISA") {
            Ok(name) if !name.is_empty() => Isa::named(&name)?,
            _ => Isa::detect(),
        };
        Cpu::with_isa(threads, isa)
    }

    /// The same with chosen instructions; [`Isa::Plain`] runs the twins.
    ///
    /// # Errors
    /// As for [`Cpu::new`].
    pub fn with_isa(threads: Option<usize>, isa: Isa) -> Result<Self, BackendError> {
        if !Isa::all().contains(&isa) {
            let reason = format!("this processor does not have {}", isa.name());
            return Err(BackendError::Unsupported { reason });
        }
        let threads = Threads::new(threads)?;
        let caps = Caps {
            backend: "cpu",
            adapter: processor_name(),
            api: isa.name().into(),
            max_binding_bytes: isize::MAX as u64,
            max_buffer_bytes: isize::MAX as u64,
            threads: threads.count() as u32,
            ..Caps::default()
        };
        let (weights, history) = (Vec::new(), Vec::new());
        Ok(Cpu { caps, isa, threads, weights, crew: None, program: None, history })
    }

    /// Shares the matrices that will be allocated with the [`Shard`]s that `carrier` leads to.
    pub fn share(&mut self, carrier: Box<dyn Carrier>) {
        let crew = Crew::new(carrier);
        self.caps.threads = crew.size() as u32;
        (self.weights, self.program, self.crew) = (Vec::new(), None, Some(crew));
    }

    /// Times every operation of a step, median of `repeats` runs.
    ///
    /// # Errors
    /// As for [`Backend::forward`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn profile(
        &mut self,
        step: &Step<'_>,
        repeats: usize,
    ) -> Result<Vec<crate::backend::OpTime>, BackendError> {
        let mut times: Vec<Vec<f64>> = Vec::new();
        for _ in 0..repeats.max(1) {
            let (program, machine, None) = self.begin(step)? else {
                return invalid("a crew's operations are not timed");
            };
            times.resize(program.plan.ops.len(), Vec::new());
            machine.threads.run(|| {
                times.iter_mut().enumerate().try_for_each(|(i, times)| {
                    let started = std::time::Instant::now();
                    program.run(machine, step.tokens, i)?;
                    times.push(started.elapsed().as_secs_f64() * 1e9);
                    Ok(())
                })
            })?;
            program.end();
        }
        let Some(program) = &self.program else { return invalid("no plan was prepared") };
        let plan = &program.plan;
        let ops = plan.ops.iter().zip(&plan.labels).zip(&mut times);
        Ok(ops
            .map(|((op, label), times)| {
                times.sort_by(f64::total_cmp);
                crate::backend::OpTime {
                    label: label.clone(),
                    kernel: op.stem().to_string(),
                    ns: times[times.len() / 2],
                    weight_bytes: op.weight().map_or(0, |w| match op {
                        crate::plan::Op::Embed { .. } => {
                            plan.weight(w).kind.row_bytes(WeightPart::Data)
                        }
                        _ => plan.weight(w).kind.bytes(),
                    }),
                }
            })
            .collect())
    }

    /// The program, once `step` has been checked and room made for it; and what runs it.
    fn begin(&mut self, step: &Step<'_>) -> Result<Begun<'_>, BackendError> {
        let Some(program) = &mut self.program else { return invalid("no plan was prepared") };
        program.begin(step)?;
        self.history.resize(step.pos as usize, UNKNOWN_TOKEN);
        self.history.extend_from_slice(step.tokens);
        let machine = Machine { isa: self.isa, threads: &self.threads, weights: &self.weights };
        Ok((program, machine, self.crew.as_mut()))
    }
}

/// A step's program, what it needs, and who helps.
type Begun<'a> = (&'a mut Program, Machine<'a>, Option<&'a mut Crew>);

/// The processor's own name for itself where it has one.
fn processor_name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
            let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004)
                .map(__cpuid)
                .flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx])
                .flat_map(u32::to_le_bytes)
                .take_while(|&b| b != 0)
                .collect();
            return String::from_utf8_lossy(&bytes).trim().to_string();
        }
    }
    std::env::consts::ARCH.to_string()
}

impl Backend for Cpu {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    async fn allocate(&mut self, weights: &[WeightSpec]) -> Result<(), BackendError> {
        (self.weights, self.program) = (Vec::new(), None);
        let own = match &mut self.crew {
            Some(crew) => crew.allocate(weights).await?,
            None => weights.to_vec(),
        };
        self.weights = weights::allocate(&own)?;
        Ok(())
    }

    fn write_weight(
        &mut self,
        id: WeightId,
        part: WeightPart,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let Some(weight) = self.weights.get_mut(id.0 as usize) else {
            return invalid(format!("no weight {} of {}", id.0, self.weights.len()));
        };
        let own = match &mut self.crew {
            Some(crew) => crew.write(id, part, offset, bytes)?,
            None => bytes,
        };
        // The first rows are the caller's, so that their offsets are the same.
        if own.is_empty() { Ok(()) } else { weight.write(part, offset, own) }
    }

    async fn prepare(&mut self, plan: &Plan, options: RunOptions) -> Result<(), BackendError> {
        self.program = None;
        self.history.clear();
        let own: Vec<_> = self.weights.iter().map(|w| w.kind).collect();
        let kinds = match &mut self.crew {
            Some(crew) => {
                crew.collect().await?;
                crew.whole()
            }
            None => &own,
        };
        self.program = Some(Program::new(plan, kinds, options)?);
        Ok(())
    }

    async fn forward(&mut self, step: Step<'_>) -> Result<(), BackendError> {
        let (program, machine, crew) = self.begin(&step)?;
        let ops = 0..program.plan.ops.len();
        match crew {
            Some(crew) => {
                for i in ops {
                    crew.run(program, machine, step.tokens, i).await?;
                }
            }
            None => machine.threads.run(|| {
                let mut ops = ops;
                ops.try_for_each(|i| program.run(machine, step.tokens, i))
            })?,
        }
        program.end();
        Ok(())
    }

    async fn logits(&mut self) -> Result<Vec<f32>, BackendError> {
        match &self.program {
            Some(program) => Ok(program.logits().to_vec()),
            None => invalid("no plan was prepared"),
        }
    }

    async fn cross_entropy(&mut self, targets: &[u32]) -> Result<Vec<f32>, BackendError> {
        let Some(program) = &self.program else { return invalid("no plan was prepared") };
        let vocab = program.plan.vocab as usize;
        let rows = program.logits().chunks_exact(vocab);
        check_targets(targets, rows.len(), program.plan.vocab)?;
        let mut nats = vec![0.0; targets.len()];
        let each = nats.iter_mut().zip(rows).zip(targets);
        self.threads.run(|| {
            self.threads.each(1, each, |((nats, row), &target)| {
                *nats = cross_entropy::cross_entropy(row, target);
            });
        });
        Ok(nats)
    }

    async fn decode(&mut self, decode: Decode<'_>) -> Result<Vec<u32>, BackendError> {
        let Some(program) = &self.program else { return invalid("no plan was prepared") };
        if let Err(e) = decode.sampling.validate() {
            return invalid(e.to_string());
        }
        if decode.count == 0 {
            return invalid("at least one token must be drawn");
        }
        let end = u64::from(decode.pos) + decode.most_fed();
        let context = program.options.context;
        if end > u64::from(context) {
            return invalid(format!("{end} positions in a context of {context}"));
        }
        if decode.feed.is_none() && (program.logits().is_empty() || decode.pos != program.cached) {
            return invalid("no logits to draw from");
        }
        let (mut feed, mut pos, mut drawn) = (decode.feed, decode.pos, Vec::new());
        for _ in 0..decode.count {
            if let Some(id) = feed {
                self.forward(Step { tokens: &[id], pos, outputs: Outputs::Last }).await?;
                pos += 1;
            }
            let Some(program) = &self.program else { break };
            let vocab = program.plan.vocab as usize;
            let logits = program.logits();
            let id = sample(&logits[logits.len() - vocab..], &self.history, pos, decode.sampling);
            drawn.push(id);
            if decode.stop.contains(&id) {
                break;
            }
            feed = Some(id);
        }
        Ok(drawn)
    }

    fn set_history(&mut self, tokens: &[u32]) {
        self.history = tokens.to_vec();
    }

    async fn trace(
        &mut self,
        step: Step<'_>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), BackendError> {
        let (program, machine, mut crew) = self.begin(&step)?;
        for i in 0..program.plan.ops.len() {
            match &mut crew {
                Some(crew) => crew.run(program, machine, step.tokens, i).await?,
                None => machine.threads.run(|| program.run(machine, step.tokens, i))?,
            }
            if let Some(values) = program.output(i) {
                sink(i, &values);
            }
        }
        program.end();
        Ok(())
    }

    fn allocated_bytes(&self) -> u64 {
        let weights: u64 = self.weights.iter().map(Weight::bytes).sum();
        let shards = self.crew.as_ref().map_or(0, Crew::bytes);
        weights + shards + self.program.as_ref().map_or(0, Program::bytes)
    }
}
