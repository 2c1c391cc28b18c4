//! `ringway chat`: two people in two terminals, and the client rules in the fewest lines.
//!
//! It keeps what it has (`have`), what it has sent and not heard of (`unsent`), and nothing else:
//! whatever happens to the connection, the same ids are sent again, and what is missing is pulled.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, IsTerminal as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use wire::close::AfterClose;
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::json::{Received, decode_server};
use wire::protocol::{ClientFrame, Kind, MessageItem, Open, Pull, PullRange, Send, Target};

use super::chat_socket::{Endpoint, FromServer, Socket, random};
use super::{Done, Failure};

/// Arguments of `ringway chat`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server, as `ringway dev` prints it.
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8800")]
    url: String,
    /// Who you are: a token from `ringway token`.
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// Whom to talk to: the other user's number.
    #[arg(long, value_name = "USER")]
    to: String,
}

/// Messages of history shown at the start.
const HISTORY: u32 = 20;
const BEAT: Duration = Duration::from_secs(20);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// How long the end of the input waits for what was typed to be stored.
const LAST_WORDS: Duration = Duration::from_secs(30);

enum Happened {
    Line(String),
    EndOfInput,
    Server(u64, FromServer),
}

/// Talks until the input ends or `/quit`.
pub(crate) fn run(arguments: &Arguments) -> Done {
    let endpoint = Endpoint::parse(&arguments.url).map_err(Failure)?;
    let to: UserId = arguments.to.parse()?;
    let (sender, events) = channel();
    read_lines(sender.clone());
    let mut chat = Chat::new(to, device_for(&arguments.token), std::io::stdout().is_terminal());
    eprintln!("talking to {to}; type and press enter, /quit to leave. ✓ stored, ✓✓ delivered, ✓✓ read");
    let mut back_off = Duration::from_millis(200);
    loop {
        match chat.connect(&endpoint, &arguments.token, &sender) {
            Ok(()) => match chat.talk(&events)? {
                Ended::Quit => return Ok(()),
                Ended::Cut { opened } => back_off = if opened { Duration::from_millis(200) } else { back_off },
            },
            Err(reason) => {
                if reason.contains("status 401") {
                    return Err(Failure(
                        "the server does not accept this token; make a new one with `ringway token`".into(),
                    ));
                }
                if !chat.told_offline {
                    chat.note(&format!("not connected ({reason}); trying again, nothing is lost"));
                    chat.told_offline = true;
                }
            }
        }
        // Full jitter: any time between nothing and the present back-off.
        let jitter = u64::from_le_bytes(random()) % (back_off.as_millis() as u64 + 1);
        if chat.wait_offline(&events, Duration::from_millis(jitter)) {
            return Ok(());
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

fn read_lines(events: Sender<Happened>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if events.send(Happened::Line(line)).is_err() {
                return;
            }
        }
        let _ = events.send(Happened::EndOfInput);
    });
}

enum Ended {
    Quit,
    Cut { opened: bool },
}

struct Chat {
    to: UserId,
    /// The device to open as, if the token leaves it open.
    device: Option<DeviceId>,
    me: Option<UserId>,
    colour: bool,
    socket: Option<Socket>,
    /// Number of the connection; what an older one says is not listened to.
    connection: u64,
    opened: bool,
    generation: Option<u64>,
    change: Option<ChangeNumber>,
    /// Everything up to it has been shown.
    have: u64,
    /// The first page of history has been shown.
    begun: bool,
    /// Messages above a hole, until the hole is filled.
    early: BTreeMap<u64, (UserId, u64, String)>,
    /// Highest message counter of this connection, and the one last acknowledged.
    n: u64,
    acknowledged: u64,
    unsent: VecDeque<(ClientMessageId, String)>,
    /// Until when nothing is sent, after a retryable error.
    hold_until: Option<Instant>,
    last_beat: Instant,
    told_offline: bool,
    delivered_all: u64,
    read_all: u64,
    own_last: u64,
    /// The input has ended: leave when all is stored, at the latest then.
    leave_by: Option<Instant>,
}

impl Chat {
    fn new(to: UserId, device: Option<DeviceId>, colour: bool) -> Self {
        Self {
            to,
            device,
            me: None,
            colour,
            socket: None,
            connection: 0,
            opened: false,
            generation: None,
            change: None,
            have: 0,
            begun: false,
            early: BTreeMap::new(),
            n: 0,
            acknowledged: 0,
            unsent: VecDeque::new(),
            hold_until: None,
            last_beat: Instant::now(),
            told_offline: false,
            delivered_all: 0,
            read_all: 0,
            own_last: 0,
            leave_by: None,
        }
    }

    fn conversation(&self) -> Option<ConversationId> {
        Some(ConversationId::direct(self.me?, self.to))
    }

    fn connect(&mut self, endpoint: &Endpoint, token: &str, events: &Sender<Happened>) -> Result<(), String> {
        self.connection += 1;
        self.opened = false;
        (self.n, self.acknowledged) = (0, 0);
        let (sender, receiver) = channel();
        let socket = Socket::connect(endpoint, token, self.connection, sender)?;
        let events = events.clone();
        std::thread::spawn(move || {
            for (number, event) in receiver {
                if events.send(Happened::Server(number, event)).is_err() {
                    return;
                }
            }
        });
        self.socket = Some(socket);
        let open = Open { token: None, ticket: None, device: self.device, changes_after: self.change, window: Some(1) };
        self.send(&ClientFrame::Open(open));
        Ok(())
    }

    /// A frame that cannot be sent is no loss: the cut is noticed by the reading thread.
    fn send(&mut self, frame: &ClientFrame<'_>) {
        if let Some(socket) = &mut self.socket
            && socket.send(frame).is_err()
        {
            self.socket = None;
        }
    }

    fn talk(&mut self, events: &Receiver<Happened>) -> Result<Ended, Failure> {
        loop {
            match events.recv_timeout(Duration::from_millis(200)) {
                Ok(Happened::Line(line)) => {
                    if self.typed(&line) {
                        return Ok(Ended::Quit);
                    }
                    if self.opened && self.hold_until.is_none() {
                        self.send_last();
                    }
                }
                Ok(Happened::EndOfInput) => self.leave_by = Some(Instant::now() + LAST_WORDS),
                Ok(Happened::Server(number, _)) if number != self.connection => {}
                Ok(Happened::Server(_, FromServer::Frame(text))) => self.received(&text),
                Ok(Happened::Server(_, FromServer::Closed(code))) => {
                    self.socket = None;
                    self.closed(code)?;
                    return Ok(Ended::Cut { opened: self.opened });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Ended::Quit),
            }
            self.keep_up();
            if self.may_leave() {
                return Ok(Ended::Quit);
            }
        }
    }

    /// Takes lines while there is no connection; `true`: leave.
    fn wait_offline(&mut self, events: &Receiver<Happened>, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Happened::Line(line)) if self.typed(&line) => return true,
                Ok(Happened::EndOfInput) => self.leave_by = Some(Instant::now() + LAST_WORDS),
                Ok(_) => {}
                Err(_) => return self.may_leave(),
            }
        }
    }

    fn may_leave(&self) -> bool {
        self.leave_by.is_some_and(|by| self.unsent.is_empty() || Instant::now() > by)
    }

    /// `true`: the user wants to leave.
    fn typed(&mut self, line: &str) -> bool {
        let line = line.trim_end();
        if line == "/quit" {
            return true;
        }
        if !line.is_empty() {
            self.unsent.push_back((new_id(), line.to_owned()));
        }
        false
    }

    fn send_last(&mut self) {
        if let Some((id, text)) = self.unsent.back().cloned() {
            self.send_text(id, &text);
        }
    }

    fn send_text(&mut self, id: ClientMessageId, text: &str) {
        let send = Send {
            id: Some(id),
            skip: None,
            target: Target::To(self.to),
            kind: Kind::Text,
            body: Cow::Borrowed(text),
            reply_to: None,
            target_seq: None,
        };
        self.send(&ClientFrame::Send(send));
    }

    fn send_all(&mut self) {
        self.hold_until = None;
        for (id, text) in self.unsent.clone() {
            self.send_text(id, &text);
        }
    }

    /// Beats, and sends again after a retryable error.
    fn keep_up(&mut self) {
        let owes = self.n > self.acknowledged && self.last_beat.elapsed() > Duration::from_millis(300);
        if self.opened && (owes || self.last_beat.elapsed() > BEAT) {
            self.acknowledged = self.n;
            self.last_beat = Instant::now();
            self.send(&ClientFrame::Beat { received: self.n });
        }
        if self.opened && self.hold_until.is_some_and(|until| Instant::now() >= until) {
            self.send_all();
        }
    }

    fn closed(&mut self, code: Option<u16>) -> Result<(), Failure> {
        match code.map(AfterClose::of) {
            Some(AfterClose::Stop) => Err(Failure(format!(
                "the server closed for good (code {}); a newer connection of the same device does that, or a rule of the protocol",
                code.unwrap_or_default()
            ))),
            Some(AfterClose::Afresh) => {
                Err(Failure("the token is no longer accepted; make a new one with `ringway token`".into()))
            }
            Some(AfterClose::Resume) | None => {
                if !self.told_offline {
                    self.note("connection lost; trying again, nothing is lost");
                    self.told_offline = true;
                }
                Ok(())
            }
        }
    }

    fn received(&mut self, text: &str) {
        let Ok(frame) = decode_server(text) else { return };
        match frame {
            Received::Hello { generation, .. } => self.met(generation),
            Received::Opened { user, change, .. } => self.session_opened(user, change),
            Received::Stored(stored) => {
                self.unsent.retain(|(id, _)| *id != stored.id);
                // What this device sends is not pushed to it: it is shown from the page or the push of `stored`.
                self.own_last = self.own_last.max(stored.seq);
                self.pull_after();
            }
            Received::Message(message) => {
                self.change = Some(message.change);
                self.n = message.n;
                if Some(message.conversation) == self.conversation() {
                    self.take(message.item);
                }
            }
            Received::Page { conversation, messages, more, .. } if Some(conversation) == self.conversation() => {
                self.page(messages, more);
            }
            Received::Tick { conversation, delivered_all, read_all, change } => {
                self.change = Some(change);
                if Some(conversation) == self.conversation() {
                    self.tick(delivered_all, read_all);
                }
            }
            Received::Mark { change, .. } => self.change = Some(change),
            Received::Lagging { .. } => self.pull_after(),
            Received::Error(error) => {
                if error.code.retryable() {
                    let wait = Duration::from_millis(u64::from(error.after_ms.unwrap_or(500)).max(100));
                    self.hold_until = Some(Instant::now() + wait);
                } else {
                    self.unsent.retain(|(id, _)| Some(*id) != error.id);
                    self.note(&format!("not sent ({}): {}", error.code.as_str(), error.message));
                }
            }
            _ => {}
        }
    }

    /// Another generation: history may have shrunk, so what is shown may be gone.
    fn met(&mut self, generation: u64) {
        if self.generation.is_some_and(|known| known != generation) {
            self.note("the server was restored from a backup: showing what it has now");
            (self.have, self.begun, self.change) = (0, false, None);
            self.early.clear();
        }
        self.generation = Some(generation);
    }

    fn session_opened(&mut self, user: UserId, change: ChangeNumber) {
        self.opened = true;
        self.me = Some(user);
        self.change = Some(change);
        if self.told_offline {
            self.note("connected again");
            self.told_offline = false;
        }
        if self.begun {
            self.pull_after();
        } else {
            self.pull(PullRange::Before(None), HISTORY);
        }
        self.send_all();
    }

    fn pull(&mut self, range: PullRange, limit: u32) {
        if let Some(conversation) = self.conversation() {
            let pull = Pull { conversation, range, limit: Some(limit), min_seq: None };
            self.send(&ClientFrame::Pull(pull));
        }
    }

    fn pull_after(&mut self) {
        if self.begun {
            self.pull(PullRange::After(self.have), 100);
        }
    }

    fn page(&mut self, mut messages: Vec<MessageItem<'_>>, more: bool) {
        messages.sort_by_key(|message| message.seq);
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            // The history above the screen is not missed: it was not asked for.
            self.have = messages.first().map_or(self.have, |message| message.seq - 1);
        }
        let any = !messages.is_empty();
        for message in messages {
            self.take(message);
        }
        if !first && more && any {
            self.pull_after();
        }
    }

    /// Shows a message if it is the next; keeps it if something is missing in front of it.
    fn take(&mut self, item: MessageItem<'_>) {
        if item.seq <= self.have && self.begun {
            return;
        }
        self.early.insert(item.seq, (item.from, item.time_ms, item.body.into_owned()));
        if !self.begun {
            return;
        }
        while let Some((from, time_ms, body)) = self.early.remove(&(self.have + 1)) {
            self.have += 1;
            self.show(from, time_ms, &body);
        }
        self.early = self.early.split_off(&(self.have + 1));
        if self.early.is_empty() {
            let (conversation, have) = (self.conversation(), self.have);
            if let Some(conversation) = conversation {
                self.send(&ClientFrame::Mark { conversation, delivered: None, read: Some(have) });
            }
        } else {
            self.pull_after();
        }
    }

    fn show(&mut self, from: UserId, time_ms: u64, body: &str) {
        let seconds = time_ms / 1_000 % 86_400;
        let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
        let mine = Some(from) == self.me;
        let who = if mine { "you".to_owned() } else { from.to_string() };
        // A message is text from somebody else: control characters must not reach the terminal.
        let body: String = body.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let tick = if mine { " ✓" } else { "" };
        if self.colour {
            let colour = if mine { 36 } else { 33 };
            println!("\x1b[2m{hours:02}:{minutes:02}\x1b[0m \x1b[{colour}m{who}\x1b[0m {body}\x1b[2m{tick}\x1b[0m");
        } else {
            println!("{hours:02}:{minutes:02} {who} {body}{tick}");
        }
        if mine {
            self.own_last = self.own_last.max(self.have);
        }
    }

    fn tick(&mut self, delivered_all: u64, read_all: u64) {
        if read_all > self.read_all && self.own_last > self.read_all {
            self.note("✓✓ read");
        } else if delivered_all > self.delivered_all && self.own_last > self.delivered_all {
            self.note("✓✓ delivered");
        }
        self.delivered_all = self.delivered_all.max(delivered_all);
        self.read_all = self.read_all.max(read_all);
    }

    fn note(&self, text: &str) {
        if self.colour { println!("\x1b[2m      {text}\x1b[0m") } else { println!("      {text}") }
    }
}

/// A device of this process's own, unless the token names one: two terminals of one user are two devices.
fn device_for(token: &str) -> Option<DeviceId> {
    use base64::Engine as _;
    let claims =
        token.split('.').nth(1).and_then(|part| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<serde_json::Value> = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
    let names_device = claims.is_some_and(|claims| claims.get("device").is_some());
    (!names_device).then(|| DeviceId(u32::from_le_bytes(random()).max(1)))
}

/// A UUIDv7.
fn new_id() -> ClientMessageId {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    let mut id: [u8; 16] = random();
    id[..6].copy_from_slice(&now.to_be_bytes()[2..]);
    id[6] = 0x70 | id[6] & 0x0f;
    id[8] = 0x80 | id[8] & 0x3f;
    ClientMessageId(id)
}
