//! A client of HTTP that is just enough to ask a server of ours: one request a connection, answers whole or in parts.

use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Where a server is, and what it wants to see.
#[derive(Clone, Debug)]
pub struct Place {
    /// Host and port.
    host: String,
    key: Option<String>,
    patience: Duration,
}

/// An answer whose body is yet to be read.
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: BufReader<Body>,
}

/// The bytes of a body, whether their number is told or they come in chunks.
pub struct Body {
    from: BufReader<TcpStream>,
    is_chunked: bool,
    /// Of the chunk at hand, or of all.
    left: u64,
    begun: bool,
}

impl Place {
    /// From an address such as `http://127.0.0.1:8080`.
    pub fn parse(address: &str, key: Option<String>, patience: Duration) -> Result<Place, String> {
        let rest = address.strip_prefix("http://").ok_or("expected an address that begins with http://")?;
        let host = rest.split('/').next().unwrap_or_default();
        match host.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Place { host: host.to_string(), key, patience })
            }
            _ => Err("expected a host and a port, such as http://127.0.0.1:8080".into()),
        }
    }

    /// Asks; a body is sent as JSON.
    pub fn ask(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<Answer> {
        let address = self.host.to_socket_addrs().context(self.host.clone())?.next();
        let address = address.with_context(|| format!("{} is no address", self.host))?;
        let mut stream =
            TcpStream::connect_timeout(&address, self.patience).with_context(|| self.host.clone())?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_nodelay(true)?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.host);
        if let Some(key) = &self.key {
            head += &format!("authorization: Bearer {key}\r\n");
        }
        if let Some(body) = body {
            head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        stream.write_all(format!("{head}\r\n{}", body.unwrap_or_default()).as_bytes())?;
        let mut from = BufReader::new(stream);
        let status = line(&mut from)?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.context("the answer has no status")?;
        let (mut is_chunked, mut left) = (false, u64::MAX);
        loop {
            let field = line(&mut from)?.to_ascii_lowercase();
            let Some((name, value)) = field.split_once(':') else { break };
            match name {
                "content-length" => left = value.trim().parse().context("content-length")?,
                "transfer-encoding" => is_chunked = value.trim() == "chunked",
                _ => {}
            }
        }
        if is_chunked {
            left = 0;
        }
        let body = Body { from, is_chunked, left, begun: false };
        Ok(Answer { status, body: BufReader::new(body) })
    }

    /// The whole body of what is told at a path.
    pub fn text(&self, path: &str) -> anyhow::Result<String> {
        let mut answer = self.ask("GET", path, None)?;
        let mut text = String::new();
        answer.body.read_to_string(&mut text)?;
        if answer.status != 200 {
            bail!("{path}: status {}: {text}", answer.status);
        }
        Ok(text)
    }
}

fn line(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    match from.read_line(&mut line)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_string()),
    }
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.is_chunked && self.left == 0 {
            if self.begun {
                line(&mut self.from)?;
            }
            self.begun = true;
            let size = line(&mut self.from)?;
            self.left = u64::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
            // Behind the last chunk the body is whole.
            self.is_chunked = self.left > 0;
        }
        if self.left == 0 {
            return Ok(0);
        }
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.from.read(&mut into[..most])?;
        if count == 0 && most > 0 && self.left != u64::MAX {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if self.left != u64::MAX {
            self.left -= count as u64;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_in_chunks_are_put_together_and_those_cut_off_are_errors() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answers = ["5\r\nhello\r\n7\r\n world!\r\n0\r\n\r\n", "5\r\nhel"];
        let thread = std::thread::spawn(move || {
            for body in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1000]).unwrap();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        let place = Place::parse(&address, None, Duration::from_secs(5)).unwrap();
        assert_eq!(place.text("/").unwrap(), "hello world!");
        assert!(place.text("/").is_err());
        thread.join().unwrap();
        for wrong in ["127.0.0.1:8080", "http://", "http://here", "http://:1", "http://a:b"] {
            assert!(Place::parse(wrong, None, Duration::from_secs(1)).is_err(), "{wrong}");
        }
    }
}
