//! What the user sees while a run goes on: a bar on a terminal, plain lines elsewhere.
//!
//! Everything goes to standard error, so that piped standard output holds data alone. Where standard error is no terminal
//! either, there is a line every so many steps and not one control code.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How the run stands after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    /// Steps taken so far.
    pub step: u64,
    /// The newest training loss.
    pub loss: f64,
    /// The newest validation loss, once there is one.
    pub validation_loss: Option<f64>,
    /// The learning rate in force.
    pub learning_rate: f64,
    /// Tokens trained on per second.
    pub tokens_per_second: f64,
    /// Duration of a step.
    pub step_ms: f64,
    /// Memory of the device in use, where it is known.
    pub memory_bytes: Option<u64>,
}

/// Shows the progress of a run.
pub struct Progress {
    steps: u64,
    view: View,
    out: Mutex<Box<dyn Write + Send>>,
    /// Slow mean of the step's duration: what the time left is told from.
    mean_ms: Option<f64>,
}

enum View {
    Bar(ProgressBar),
    /// A line each so many steps; none at all for zero.
    Plain {
        every: u64,
    },
}

/// Share of the old mean kept at each step. The mean follows a change within some thirty steps.
const KEPT: f64 = 0.9;

const TEMPLATE: &str = "{bar:32} {pos}/{len}  {prefix}\n{wide_msg}";

impl Progress {
    /// A bar if standard error is a terminal, and otherwise a line each `every` steps (none for zero). A resumed run
    /// starts at the number of steps it has behind it.
    pub fn new(start: u64, steps: u64, every: u64) -> Progress {
        if io::stderr().is_terminal() {
            Progress::bar(ProgressDrawTarget::stderr(), Box::new(io::stderr()), start, steps)
        } else {
            Progress::plain(Box::new(io::stderr()), steps, every)
        }
    }

    /// Plain lines to a writer, each `every` steps.
    pub fn plain(out: Box<dyn Write + Send>, steps: u64, every: u64) -> Progress {
        Progress { steps, view: View::Plain { every }, out: Mutex::new(out), mean_ms: None }
    }

    fn bar(target: ProgressDrawTarget, out: Box<dyn Write + Send>, start: u64, steps: u64) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        bar.set_style(ProgressStyle::with_template(TEMPLATE).expect("the template is fixed and valid"));
        bar.set_position(start);
        Progress { steps, view: View::Bar(bar), out: Mutex::new(out), mean_ms: None }
    }

    /// Shows where the run stands.
    pub fn update(&mut self, status: &Status) {
        let mean = self.mean_ms.unwrap_or(status.step_ms);
        let mean = KEPT * mean + (1.0 - KEPT) * status.step_ms;
        self.mean_ms = Some(mean).filter(|mean| mean.is_finite());
        let left = time_left(self.steps.saturating_sub(status.step), mean);
        match &self.view {
            View::Bar(bar) => {
                bar.set_prefix(left);
                bar.set_message(figures(status));
                bar.set_position(status.step);
            }
            View::Plain { every } => {
                let due = *every > 0 && (status.step.is_multiple_of(*every) || status.step == self.steps);
                if due {
                    self.println(&format!(
                        "step {}/{}  {}  {left}",
                        status.step,
                        self.steps,
                        figures(status)
                    ));
                }
            }
        }
    }

    /// Prints a line above the bar.
    pub fn println(&self, text: &str) {
        self.suspend(|| {
            let mut out = self.out.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // A closed terminal is no reason to stop a run.
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        });
    }

    /// Runs something that prints by itself, with the bar out of its way.
    ///
    /// Why this and not indicatif's own `println`: that one drops the line when the bar is hidden.
    pub fn suspend<R>(&self, print: impl FnOnce() -> R) -> R {
        match &self.view {
            View::Bar(bar) => bar.suspend(print),
            View::Plain { .. } => print(),
        }
    }

    /// Takes the bar away, or leaves it standing where the run ended.
    pub fn finish(&self) {
        if let View::Bar(bar) = &self.view {
            bar.abandon();
        }
    }
}

impl Drop for Progress {
    /// A run that fails must not leave its bar over the message.
    fn drop(&mut self) {
        if let View::Bar(bar) = &self.view
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}

fn figures(status: &Status) -> String {
    let mut parts = vec![format!("loss {:.4}", status.loss)];
    parts.extend(status.validation_loss.map(|loss| format!("validation {loss:.4}")));
    parts.push(format!("lr {:.2e}", status.learning_rate));
    parts.push(format!("{} tokens/s", rounded(status.tokens_per_second)));
    parts.push(format!("{:.1} ms/step", status.step_ms));
    parts.extend(status.memory_bytes.map(memory));
    parts.join("  ")
}

fn rounded(count: f64) -> String {
    match count {
        n if n < 1e4 => format!("{n:.0}"),
        n if n < 1e6 => format!("{:.1}k", n / 1e3),
        n => format!("{:.2}M", n / 1e6),
    }
}

fn memory(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.0} MiB") } else { format!("{:.2} GiB", mebibytes / 1024.0) }
}

fn time_left(steps: u64, mean_ms: f64) -> String {
    let Ok(left) = Duration::try_from_secs_f64(steps as f64 * mean_ms / 1e3) else {
        return String::new();
    };
    let seconds = left.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s left"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s left"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m left"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::sync::Arc;

    /// Keeps all that is written; control codes in the terminal's part are left out.
    #[derive(Clone, Debug, Default)]
    struct Recorder(Arc<Mutex<Vec<u8>>>);

    impl Recorder {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Recorder {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl TermLike for Recorder {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().write_all(text.as_bytes())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("\n")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn status(step: u64) -> Status {
        Status {
            step,
            loss: 2.34567,
            validation_loss: Some(2.5),
            learning_rate: 1e-3,
            tokens_per_second: 19_200.0,
            step_ms: 40.0,
            memory_bytes: Some(1_395_864_371),
        }
    }

    #[test]
    fn piped_output_is_a_line_every_so_many_steps_without_control_codes() {
        let recorder = Recorder::default();
        let mut progress = Progress::plain(Box::new(recorder.clone()), 25, 10);
        (1..=25).for_each(|step| progress.update(&status(step)));
        progress.println("saved");
        progress.finish();
        let figures = "loss 2.3457  validation 2.5000  lr 1.00e-3  19.2k tokens/s  40.0 ms/step  1.30 GiB";
        let expected = format!(
            "step 10/25  {figures}  1s left\nstep 20/25  {figures}  0s left\nstep 25/25  {figures}  0s left\nsaved\n"
        );
        assert_eq!(recorder.text(), expected);
    }

    #[test]
    fn lines_printed_while_the_bar_lives_are_never_swallowed() {
        let recorder = Recorder::default();
        let target = ProgressDrawTarget::term_like(Box::new(recorder.clone()));
        let mut progress = Progress::bar(target, Box::new(recorder.clone()), 0, 100);
        for step in 1..=100 {
            progress.update(&status(step));
            progress.println(&format!("line {step} is here"));
        }
        progress.finish();
        let text = recorder.text();
        for step in 1..=100 {
            assert!(text.contains(&format!("\nline {step} is here\n")), "line {step}\n{text}");
        }
        assert!(text.contains("100/100") && text.contains("loss 2.3457  validation 2.5000"), "{text}");
    }

    #[test]
    fn a_hidden_bar_swallows_nothing_either() {
        let recorder = Recorder::default();
        let progress = Progress::bar(ProgressDrawTarget::hidden(), Box::new(recorder.clone()), 0, 100);
        progress.println("still here");
        assert_eq!(recorder.text(), "still here\n");
    }

    #[test]
    fn a_resumed_bar_starts_where_the_run_stopped() {
        let recorder = Recorder::default();
        let target = ProgressDrawTarget::term_like(Box::new(recorder.clone()));
        let progress = Progress::bar(target, Box::new(recorder.clone()), 50, 100);
        progress.suspend(|| ());
        progress.finish();
        assert!(recorder.text().contains("50/100"), "{}", recorder.text());
    }

    #[test]
    fn the_time_left_follows_the_mean_step_and_bears_what_is_not_a_number() {
        assert_eq!(time_left(90, 1000.0), "1m30s left");
        assert_eq!(time_left(7500, 1000.0), "2h05m left");
        assert_eq!(time_left(3, f64::NAN), "");
        let mut progress = Progress::plain(Box::new(io::sink()), 10, 1);
        progress.update(&Status { step_ms: f64::NAN, ..status(1) });
        progress.update(&status(2));
        assert_eq!(progress.mean_ms, Some(40.0));
    }
}
