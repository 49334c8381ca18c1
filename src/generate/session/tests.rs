use super::*;
use crate::deploy::Deployment;
use crate::generate::tests::{families, lively, text, whole};
use crate::generate::{CausalRows, Room};
use crate::train::Target;

const CONTEXT: usize = 32;

fn session(number: usize, rows: usize) -> (Session, impl Fn(&[u32], usize) -> Vec<u32>) {
    let (_, family) = families(CONTEXT).remove(number);
    let weights = lively(&*family);
    let room = Room { rows, tokens: CONTEXT };
    let made = CausalRows::new(&*family, &Deployment::new(&weights), &Target::Host, room).unwrap();
    let tokenizer = Tokenizer::characters("abcdefghijklmnopqrstuvw");
    // Greedy text of a model without caches.
    let greedy = move |prompt: &[u32], count: usize| {
        let mut all = prompt.to_vec();
        for _ in 0..count {
            let seen = &all[all.len().saturating_sub(CONTEXT)..];
            all.push(processors::greatest(whole(&*family, &weights, seen).last().unwrap()));
        }
        all.split_off(prompt.len())
    };
    (Session::new(Box::new(made), Some(Arc::new(tokenizer))), greedy)
}

/// Runs to the end; tokens and finishes by ticket.
fn run(session: &mut Session) -> std::collections::BTreeMap<Ticket, (Vec<u32>, String, Option<Finish>)> {
    let mut all = std::collections::BTreeMap::<_, (Vec<u32>, String, Option<Finish>)>::new();
    while !session.is_idle() {
        for event in session.step().unwrap() {
            let entry = all.entry(event.ticket).or_default();
            entry.0.push(event.token);
            entry.1 += &event.text;
            entry.2 = event.finish;
        }
    }
    all
}

#[test]
fn texts_that_come_and_go_are_written_as_each_is_alone() {
    for number in [0, 1, 5] {
        let (mut session, greedy) = session(number, 3);
        let prompts: Vec<Vec<u32>> = (0..7).map(|i| text(24)[i..2 * i + 3].to_vec()).collect();
        let tickets: Vec<Ticket> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| {
                session.admit(Request::new(prompt.clone(), Settings::greedy(4 + i % 4))).unwrap()
            })
            .collect();
        assert_eq!(session.load(), [0, 7]);
        let all = run(&mut session);
        for (i, (ticket, prompt)) in tickets.iter().zip(&prompts).enumerate() {
            assert_eq!(all[ticket].0, greedy(prompt, 4 + i % 4), "{number}: {i}");
            assert_eq!(all[ticket].2, Some(Finish::Length));
        }
    }
}

#[test]
fn a_seed_gives_the_same_text_whatever_stands_beside_it() {
    let drawn = |rows: usize, others: usize, seed: u64| {
        let (mut session, _) = session(1, rows);
        let settings =
            Settings { do_sample: true, top_p: 0.9, temperature: 0.9, seed, ..Settings::greedy(12) };
        for i in 0..others {
            let settings = Settings { seed: 99 + i as u64, ..settings.clone() };
            session.admit(Request::new(text(5 + i), settings)).unwrap();
        }
        let ticket = session.admit(Request::new(text(6), settings)).unwrap();
        run(&mut session).remove(&ticket).unwrap().0
    };
    let alone = drawn(1, 0, 3);
    assert_eq!(alone, drawn(4, 3, 3));
    assert_eq!(alone, drawn(2, 5, 3));
    assert!((4..9).any(|seed| drawn(1, 0, seed) != alone));
}

#[test]
fn a_text_ends_at_its_end_its_stop_text_its_length_or_a_full_context() {
    let (mut session, greedy) = session(1, 2);
    let prompt = text(6);
    let expected = greedy(&prompt, 27);
    let mut finish = |settings: Settings| {
        let ticket = session.admit(Request::new(prompt.clone(), settings)).unwrap();
        run(&mut session).remove(&ticket).unwrap()
    };
    let end = expected[3];
    let first = expected.iter().position(|token| *token == end).unwrap();
    let (ids, _, how) = finish(Settings { ends: vec![end], ..Settings::greedy(20) });
    assert_eq!((ids, how), (expected[..=first].to_vec(), Some(Finish::End(end))));
    let (_, written, _) = finish(Settings::greedy(20));
    let stop: String = written.chars().skip(4).take(2).collect();
    let at = written.find(&stop).unwrap();
    let (_, shown, how) = finish(Settings { stop: vec![stop.clone()], ..Settings::greedy(20) });
    assert_eq!((shown.as_str(), how), (&written[..at], Some(Finish::Stop(stop))));
    let (ids, _, how) = finish(Settings::greedy(100));
    assert_eq!((ids, how), (expected, Some(Finish::Full)));
}

#[test]
fn a_full_context_may_slide_and_a_long_prompt_is_refused_or_cut() {
    let (mut session, greedy) = session(2, 1);
    let long = text(CONTEXT + 9);
    let refused = session.admit(Request::new(long.clone(), Settings::greedy(1)));
    assert!(matches!(refused, Err(Error::TooLong { tokens: 41, capacity: 32 })));
    let slide = Settings { overflow: Overflow::Slide, ..Settings::greedy(40) };
    session.admit(Request::new(long.clone(), slide)).unwrap();
    let written = run(&mut session).into_values().next().unwrap().0;
    assert_eq!(written.len(), 40);
    assert_eq!(written[0], greedy(&long, 1)[0]);
}

#[test]
fn a_conversation_goes_on_in_the_row_that_has_read_it() {
    let (mut session, _) = session(1, 3);
    let first = session.admit(Request::new(text(10), Settings::greedy(3))).unwrap();
    let other = session.admit(Request::new(vec![9, 9, 9], Settings::greedy(3))).unwrap();
    let written = run(&mut session);
    let turn = [text(10), written[&first].0.clone(), vec![5]].concat();
    session.admit(Request::new(turn.clone(), Settings::greedy(2))).unwrap();
    session.step().unwrap();
    // Its last written token was never read, and the last of a prompt always is.
    assert_eq!(session.reused(), 12);
    let holds = (0..3).filter(|row| session.rows().held(*row).starts_with(&turn)).count();
    let others = (0..3).filter(|row| session.rows().held(*row).starts_with(&[9, 9, 9])).count();
    assert_eq!((holds, others, written[&other].0.len()), (1, 1, 3));
    assert!((0..3).any(|row| session.rows().held(row).is_empty()));
}

#[test]
fn log_probabilities_are_those_of_the_model_and_a_text_may_be_given_up() {
    let (mut session, _) = session(0, 2);
    let request = Request { logprobs: Some(3), ..Request::new(text(5), Settings::greedy(2)) };
    let told = session.admit(request).unwrap();
    let given_up = session.admit(Request::new(text(4), Settings::greedy(9))).unwrap();
    let events = session.step().unwrap();
    assert!(session.cancel(given_up) && !session.cancel(given_up));
    let event = events.iter().find(|event| event.ticket == told).unwrap();
    let of = event.told.as_ref().unwrap();
    assert!(of.top.len() == 3 && of.top[0] == (event.token, of.chosen) && of.top[1].1 <= of.top[0].1);
    assert_eq!(run(&mut session).len(), 1);
    assert!(matches!(session.admit(Request::new(vec![], Settings::greedy(1))), Err(Error::EmptyPrompt)));
    let unknown = session.admit(Request::new(vec![77], Settings::greedy(1)));
    assert!(matches!(unknown, Err(Error::UnknownToken { token: 77, .. })));
}

#[test]
fn a_text_matches_its_expression_and_ends_when_nothing_may_follow() {
    let (mut session, _) = session(1, 2);
    let tokenizer = session.tokenizer.clone().unwrap();
    let spelling = super::super::Spelling::of(&tokenizer).unwrap();
    let write = |session: &mut Session, pattern: &str, beams: bool| {
        let grammar = Some(Arc::new(super::super::Grammar::regex(pattern, &spelling).unwrap()));
        let settings = Settings { grammar, ..Settings::greedy(12) };
        if beams {
            let sought = [super::super::Sought { prompt: &text(5), row: 0, stream: 0 }];
            let beams = super::super::Beams::of(2);
            let found = super::super::search(session.rows(), &sought, &settings, &beams, None).unwrap();
            return (tokenizer.decode(&found[0][0].ids[5..]).unwrap(), None);
        }
        session.admit(Request::new(text(5), settings)).unwrap();
        let (_, text, finish) = run(session).into_values().next().unwrap();
        (text, finish)
    };
    for (pattern, length) in [("abc|bcd", 3), ("[acegik]{5}", 5), ("(ab){2}c", 5)] {
        let whole = regex_automata::meta::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        let (text, finish) = write(&mut session, pattern, false);
        assert!(whole.is_match(&text) && text.len() == length, "{pattern}: {text}");
        assert_eq!(finish, Some(Finish::Complete));
        let (text, _) = write(&mut session, pattern, true);
        assert!(whole.is_match(&text), "{pattern}: {text}");
    }
    // There is no letter z among the tokens.
    assert_eq!(write(&mut session, "abz", false), ("ab".into(), Some(Finish::Stuck)));
    let grammar = Some(Arc::new(super::super::Grammar::regex("z", &spelling).unwrap()));
    let refused = session.admit(Request::new(text(5), Settings { grammar, ..Settings::greedy(3) }));
    assert!(matches!(refused, Err(Error::Pattern { .. })));
}

#[test]
fn what_is_owed_to_the_context_counts_for_more() {
    let (mut session, greedy) = session(1, 3);
    let (context, question) = (text(9), vec![4, 8, 15]);
    let whole = [&context[..], &question].concat();
    let mut write = |alpha: f64, others: usize| {
        for i in 0..others {
            session.admit(Request::new(text(4 + i), Settings::greedy(9))).unwrap();
        }
        let contrast = Some(super::super::Contrast { without: question.clone(), alpha });
        let settings = Settings { contrast, ..Settings::greedy(8) };
        let ticket = session.admit(Request::new(whole.clone(), settings)).unwrap();
        run(&mut session).remove(&ticket).unwrap().0
    };
    // Nothing owed is the plain text; beside others, which take rows that it waits for, it stays what it is.
    assert_eq!(write(0.0, 0), greedy(&whole, 8));
    assert_eq!(write(0.0, 3), greedy(&whole, 8));
    let more = write(3.0, 0);
    assert_eq!(more, write(3.0, 2));
    assert_ne!(more, greedy(&whole, 8));
}

/// Rows that read four tokens at a time.
struct Slow(Box<dyn Rows>);

impl Rows for Slow {
    fn count(&self) -> usize {
        self.0.count()
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }

    fn vocabulary(&self) -> usize {
        self.0.vocabulary()
    }

    fn held(&self, row: usize) -> &[u32] {
        self.0.held(row)
    }

    fn next(&mut self, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        self.0.next(texts, how)
    }

    fn reads_at_once(&self) -> usize {
        4
    }

    fn order(&mut self, from: &[usize]) -> Result<()> {
        self.0.order(from)
    }

    fn memory_bytes(&self) -> u64 {
        self.0.memory_bytes()
    }
}

#[test]
fn a_long_prompt_is_read_between_the_tokens_of_others() {
    let (session, greedy) = session(1, 3);
    let mut session = Session { rows: Box::new(Slow(session.rows)), ..session };
    let ask = |session: &mut Session, prompt: Vec<u32>, count: usize| {
        session.admit(Request::new(prompt, Settings::greedy(count))).unwrap()
    };
    let running = ask(&mut session, text(3), 8);
    assert_eq!(session.step().unwrap().len(), 1);
    // A step reads eight tokens: 21 take three, and the rest of the third has no room for a run of the other text.
    let prompts = [text(21), text(12)[3..].to_vec()];
    let [long, other] = prompts.clone().map(|prompt| ask(&mut session, prompt, 3));
    let mut came = vec![];
    let mut written = std::collections::BTreeMap::<Ticket, Vec<u32>>::new();
    while !session.is_idle() {
        let events = session.step().unwrap();
        came.push(events.iter().map(|event| event.ticket).collect::<Vec<_>>());
        events.iter().for_each(|event| written.entry(event.ticket).or_default().push(event.token));
    }
    assert_eq!(came[..3], [vec![running], vec![running], vec![running, long]]);
    assert_eq!(came[3..5], [vec![running, long], vec![running, long, other]]);
    assert_eq!(written[&long], greedy(&prompts[0], 3));
    assert_eq!(written[&other], greedy(&prompts[1], 3));
    assert_eq!(written[&running], greedy(&text(3), 8)[1..]);
}
