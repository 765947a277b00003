//! A file system in memory, mounted by FUSE, that writes down everything that is done to it and
//! fails when it is told to.
//!
//! The kernel hands each write on at once, before it returns, so what is recorded is what the server
//! did, in the order in which it did it. Of sled's own flush, `sync_file_range`, nothing arrives
//! here: it is no sync.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::process::{getgid, getuid};
use tokio::sync::watch;
use tokio::time::Instant;

use super::image::{Ino, Node, ROOT, Step, Tree};

/// How the disk goes wrong, and stays wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// A file that should grow does not: ENOSPC.
    Full,
    /// Nothing can be written: EIO.
    WriteFails,
    /// Nothing can be synced, and what was not synced is lost: EIO.
    SyncFails,
    /// Syncs do not come back.
    SyncHangs,
    /// The file system is read-only now: EROFS.
    ReadOnly,
}

/// A fault to come.
struct Planned {
    fault: Fault,
    /// The only file that it hits, if there is one.
    only: Option<Ino>,
    /// How many operations that it would hit are let through before.
    after: usize,
}

#[derive(Default)]
struct State {
    base: Tree,
    live: Tree,
    steps: Vec<Step>,
    fault: Option<Planned>,
    hanging: Vec<ReplyEmpty>,
    last_ino: Ino,
}

/// The moment of the first operation that failed, and how many steps there had been.
pub(super) type Struck = Option<(Instant, usize)>;

/// The disk, as the tests see it. Clones are the same disk.
#[derive(Clone)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
    struck: watch::Sender<Struck>,
}

impl Disk {
    /// A disk that holds this.
    pub(super) fn holding(base: Tree) -> Self {
        let last_ino = base.nodes.keys().copied().max().unwrap_or(ROOT);
        let state = State { live: base.clone(), base, last_ino, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), struck: watch::Sender::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the file system has not panicked")
    }

    /// Mounts it on a directory until the handle is dropped.
    pub(super) fn mount(&self, path: &Path) -> BackgroundSession {
        let mut config = fuser::Config::default();
        config.mount_options = vec![fuser::MountOption::FSName("avouch-test".to_owned())];
        fuser::spawn_mount(Served(self.clone()), path, &config)
            .expect("a file system can be mounted here; that takes root's rights and /dev/fuse")
    }

    /// How many steps were written down so far. What is told from here on has happened later.
    pub(super) fn position(&self) -> usize {
        self.lock().steps.len()
    }

    /// What it held when it was mounted, and what was done to it since.
    pub(super) fn record(&self) -> (Tree, Vec<Step>) {
        let state = self.lock();
        (state.base.clone(), state.steps.clone())
    }

    /// What it holds for those who did not lose power.
    pub(super) fn live(&self) -> Tree {
        self.lock().live.clone()
    }

    /// Fails after so many more operations that the fault would hit; of this file alone, if one is
    /// named.
    pub(super) fn fail(&self, fault: Fault, only: Option<&str>, after: usize) {
        let mut state = self.lock();
        let only = only.map(|path| state.live.find(path).expect("the file is there"));
        state.fault = Some(Planned { fault, only, after });
    }

    /// Tells when the fault has struck.
    pub(super) fn struck(&self) -> watch::Receiver<Struck> {
        self.struck.subscribe()
    }

    /// Ends the syncs that hang, with an error: the disk is gone for good.
    pub(super) fn release(&self) {
        let hanging = std::mem::take(&mut self.lock().hanging);
        for reply in hanging {
            reply.error(Errno::EIO);
        }
    }

    /// Whether an operation on a file that these faults would hit is to fail, and by which.
    fn hit(&self, state: &mut State, file: Option<INodeNo>, faults: &[Fault]) -> Option<Fault> {
        let planned = state.fault.as_mut()?;
        let spared = planned.only.is_some() && planned.only != file.map(|ino| ino.0);
        if spared || !faults.contains(&planned.fault) {
            return None;
        }
        if planned.after > 0 {
            planned.after -= 1;
            return None;
        }
        let (fault, position) = (planned.fault, state.steps.len());
        self.struck.send_if_modified(|struck| {
            let first = struck.is_none();
            struck.get_or_insert_with(|| (Instant::now(), position));
            first
        });
        Some(fault)
    }
}

impl State {
    fn take(&mut self, step: Step) {
        self.live.apply(&step);
        self.steps.push(step);
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<Ino, Errno> {
        let names = self.live.names(parent.0).ok_or(Errno::ENOTDIR)?;
        names.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn attributes(&self, ino: Ino) -> Result<FileAttr, Errno> {
        let (kind, perm, size) = match self.live.nodes.get(&ino).ok_or(Errno::ENOENT)? {
            Node::File { bytes, mode } => (FileType::RegularFile, *mode, bytes.len() as u64),
            Node::Directory { mode, .. } => (FileType::Directory, *mode, 0),
        };
        let then = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: then,
            mtime: then,
            ctime: then,
            crtime: then,
            kind,
            perm: u16::try_from(perm & 0o7777).expect("12 bits"),
            nlink: 1,
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn create(
        &mut self,
        parent: INodeNo,
        name: &OsStr,
        directory: bool,
        mode: u32,
    ) -> Result<FileAttr, Errno> {
        if self.child(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.last_ino += 1;
        let ino = self.last_ino;
        let mode = mode & 0o7777;
        self.take(Step::Create { parent: parent.0, name: name.to_owned(), ino, directory, mode });
        self.attributes(ino)
    }
}

/// How long the kernel may remember a name. It is the only one who changes them.
const TTL: Duration = Duration::from_secs(60);

/// The disk, as the kernel sees it.
struct Served(Disk);

impl Served {
    /// Changes something, if the disk still does.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.0.lock();
        match self.0.hit(&mut state, None, &[Fault::ReadOnly]) {
            Some(_) => Err(Errno::EROFS),
            None => change(&mut state),
        }
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        let faults = [Fault::SyncFails, Fault::SyncHangs, Fault::ReadOnly];
        match self.0.hit(&mut state, Some(ino), &faults) {
            Some(Fault::SyncHangs) => return state.hanging.push(reply),
            Some(Fault::ReadOnly) => return reply.error(Errno::EROFS),
            Some(_) => {
                state.take(Step::FailedSync { ino: ino.0 });
                return reply.error(Errno::EIO);
            }
            None => state.take(Step::Sync { ino: ino.0 }),
        }
        drop(state);
        reply.ok();
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn offset_of(offset: u64) -> usize {
    usize::try_from(offset).expect("64 bit")
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.0.lock();
        match state.child(parent, name).and_then(|ino| state.attributes(ino)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.lock().attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(|state| {
            if let Some(mode) = mode {
                state.take(Step::Mode { ino: ino.0, mode: mode & 0o7777 });
            }
            if let Some(size) = size {
                state.take(Step::Resize { ino: ino.0, len: offset_of(size) });
            }
            state.attributes(ino.0)
        });
        match changed {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        match self.change(|state| state.create(parent, name, true, mode & !umask)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.change(|state| state.create(parent, name, false, mode & !umask)) {
            Ok(attributes) => {
                let flags = FopenFlags::empty();
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.change(|state| {
            if state.child(parent, name).is_ok() {
                return Err(Errno::EEXIST);
            }
            state.take(Step::Link { parent: parent.0, name: name.to_owned(), ino: ino.0 });
            state.attributes(ino.0)
        });
        match linked {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.change(|state| {
            state.child(parent, name)?;
            state.take(Step::Remove { parent: parent.0, name: name.to_owned() });
            Ok(())
        });
        done(removed, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.change(|state| {
            let ino = state.child(parent, name)?;
            if state.live.names(ino).is_some_and(|names| !names.is_empty()) {
                return Err(Errno::ENOTEMPTY);
            }
            state.take(Step::Remove { parent: parent.0, name: name.to_owned() });
            Ok(())
        });
        done(removed, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.change(|state| {
            if parent != new_parent {
                return Err(Errno::EXDEV);
            }
            state.child(parent, name)?;
            let (from, to) = (name.to_owned(), new_name.to_owned());
            state.take(Step::Rename { parent: parent.0, from, to });
            Ok(())
        });
        done(renamed, reply);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock();
        let Some(bytes) = state.live.bytes(ino.0) else { return reply.error(Errno::EISDIR) };
        let from = offset_of(offset).min(bytes.len());
        let to = (from + size as usize).min(bytes.len());
        reply.data(&bytes[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        let offset = offset_of(offset);
        let grows = state.live.bytes(ino.0).is_some_and(|bytes| bytes.len() < offset + data.len());
        let faults = [Fault::WriteFails, Fault::ReadOnly, Fault::Full];
        match self.0.hit(&mut state, Some(ino), if grows { &faults } else { &faults[..2] }) {
            Some(Fault::Full) => return reply.error(Errno::ENOSPC),
            Some(Fault::ReadOnly) => return reply.error(Errno::EROFS),
            Some(_) => return reply.error(Errno::EIO),
            None => {}
        }
        state.take(Step::Write { ino: ino.0, offset, bytes: data.to_vec() });
        drop(state);
        reply.written(u32::try_from(data.len()).expect("the kernel asks for no more"));
    }

    /// At each close; it syncs nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.0.lock();
        let Some(names) = state.live.names(ino.0) else { return reply.error(Errno::ENOTDIR) };
        let this = [(ino.0, OsStr::new(".")), (ROOT, OsStr::new(".."))];
        let names =
            this.into_iter().chain(names.iter().map(|(name, ino)| (*ino, name.as_os_str())));
        for (next, (ino, name)) in (1..).zip(names).skip(offset_of(offset)) {
            let kind = match state.live.nodes.get(&ino) {
                Some(Node::Directory { .. }) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    /// Plenty of room, whatever the fault: one that strikes without a warning.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const BLOCKS: u64 = 1 << 24;
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
