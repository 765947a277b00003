//! How numbers, texts and what is made of them stand in a record.

use std::time::Duration;

use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Initiator, Reason};
use crate::domain::ids::{Epoch, Epochs};
use crate::domain::scope::{MAX_NAMES, Names};
use crate::store::StoreError;

/// Writes a record.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(version: u8) -> Self {
        // Most records fit without growing.
        let mut bytes = Vec::with_capacity(256);
        bytes.push(version);
        Self(bytes)
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// LEB128, so that small numbers are short.
    pub(super) fn uint(&mut self, mut value: u64) -> &mut Self {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return self;
            }
            self.0.push(low | 0x80);
        }
    }

    pub(super) fn time(&mut self, at: Timestamp) -> &mut Self {
        self.uint(at.as_millis())
    }

    pub(super) fn span(&mut self, span: Duration) -> &mut Self {
        self.uint(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.uint(bytes.len() as u64).raw(bytes)
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn names(&mut self, names: &Names) -> &mut Self {
        self.uint(names.len() as u64);
        for name in names.iter() {
            self.text(name);
        }
        self
    }

    pub(super) fn option<T>(
        &mut self,
        value: Option<T>,
        write: impl FnOnce(&mut Self, T),
    ) -> &mut Self {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                write(self, value);
                self
            }
        }
    }

    pub(super) fn cause(&mut self, cause: Cause) -> &mut Self {
        self.u8(cause.reason as u8).u8(cause.initiator as u8)
    }

    pub(super) fn epochs(&mut self, epochs: &Epochs) -> &mut Self {
        self.uint(epochs.global.0.into()).uint(epochs.client.0.into()).uint(epochs.subject.0.into())
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Reads a record. Every failure is the same: the bytes are not what was written.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

pub(super) type Read<T> = Result<T, StoreError>;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], version: u8, what: &'static str) -> Read<Self> {
        let mut reader = Self { rest: bytes, what };
        if reader.u8()? == version { Ok(reader) } else { Err(reader.corrupt()) }
    }

    pub(super) fn corrupt(&self) -> StoreError {
        StoreError::Corrupt(format!("a {} cannot be read", self.what))
    }

    pub(super) fn raw(&mut self, len: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.corrupt())?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.raw(N)?.try_into().map_err(|_| self.corrupt())
    }

    pub(super) fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn uint(&mut self) -> Read<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.corrupt())
    }

    pub(super) fn u32(&mut self) -> Read<u32> {
        u32::try_from(self.uint()?).map_err(|_| self.corrupt())
    }

    pub(super) fn time(&mut self) -> Read<Timestamp> {
        Ok(Timestamp::from_millis(self.uint()?))
    }

    pub(super) fn span(&mut self) -> Read<Duration> {
        Ok(Duration::from_millis(self.uint()?))
    }

    pub(super) fn bytes(&mut self) -> Read<&'a [u8]> {
        let len = usize::try_from(self.uint()?).map_err(|_| self.corrupt())?;
        self.raw(len)
    }

    pub(super) fn text(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.corrupt())
    }

    pub(super) fn id<T: std::str::FromStr>(&mut self) -> Read<T> {
        self.text()?.parse().map_err(|_| self.corrupt())
    }

    pub(super) fn names(&mut self) -> Read<Names> {
        let len = usize::try_from(self.uint()?).map_err(|_| self.corrupt())?;
        let mut names = Vec::with_capacity(len.min(MAX_NAMES));
        for _ in 0..len {
            names.push(self.text()?);
        }
        Names::new(names).map_err(|_| self.corrupt())
    }

    pub(super) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.corrupt()),
        }
    }

    pub(super) fn bool(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt()),
        }
    }

    pub(super) fn cause(&mut self) -> Read<Cause> {
        let reason = Reason::from_number(self.u8()?.into()).ok_or_else(|| self.corrupt())?;
        let initiator = Initiator::from_number(self.u8()?.into()).ok_or_else(|| self.corrupt())?;
        Ok(Cause { reason, initiator })
    }

    pub(super) fn epochs(&mut self) -> Read<Epochs> {
        Ok(Epochs {
            global: Epoch(self.u32()?),
            client: Epoch(self.u32()?),
            subject: Epoch(self.u32()?),
        })
    }

    pub(super) fn end(self) -> Read<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt()) }
    }
}

/// The version that every layout has so far.
pub(super) const V1: u8 = 1;
