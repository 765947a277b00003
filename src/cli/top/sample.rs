//! What /metrics said at one moment.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than the server ever says.
const MAX_BYTES: u64 = 16 << 20;

/// Reads /metrics of the server at `url`.
pub(super) async fn fetch(url: &str) -> Result<String, String> {
    let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let host = host.filter(|host| !host.is_empty() && !host.contains(['/', '@', ' ', '\r', '\n']));
    let host = host.ok_or("must be http:// with a host and a port")?;
    let asked = async {
        let mut stream = TcpStream::connect(host).await?;
        // HTTP/1.0: the answer is whole when the connection ends.
        let request = format!("GET /metrics HTTP/1.0\r\nhost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(PATIENCE, asked).await.map_err(|_| "it does not answer")?;
    let answer = answer.map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("it does not speak HTTP")?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    Ok(body.to_owned())
}

struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Numbers by name and labels.
pub(super) struct Sample(Vec<Series>);

impl Sample {
    /// Reads the text; what makes no sense is left out.
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(series).collect())
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Series> {
        self.0.iter().filter(move |series| {
            series.name == name
                && labels.iter().all(|(label, value)| series.label(label) == Some(*value))
        })
    }

    /// The sum of what has this name and these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // Not by `sum`, whose empty sum is -0.
        self.matching(name, labels).fold(0.0, |sum, series| sum + series.value)
    }

    /// The values of a label, each once, in order.
    pub(super) fn values(&self, name: &str, label: &str) -> Vec<String> {
        let found = self.matching(name, &[]).filter_map(|series| series.label(label));
        let mut values: Vec<String> = found.map(str::to_owned).collect();
        values.sort();
        values.dedup();
        values
    }

    /// Buckets by their upper bound, with how many are at or below it.
    pub(super) fn buckets(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for series in self.matching(name, labels) {
            let bound = series.label("le").and_then(|le| le.parse::<f64>().ok());
            let Some(bound) = bound else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += series.value,
                None => buckets.push((bound, series.value)),
            }
        }
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        buckets
    }
}

impl Series {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// `name{label="value",…} number`. No value of ours has a quote or a comma in it.
fn series(line: &str) -> Option<Series> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some(Series { name: series.to_owned(), labels: Vec::new(), value });
    };
    let pair = |pair: &str| {
        let (label, value) = pair.split_once('=')?;
        Some((label.to_owned(), value.trim_matches('"').to_owned()))
    };
    let labels = labels.strip_suffix('}')?.split(',').map(pair).collect::<Option<_>>()?;
    Some(Series { name: name.to_owned(), labels, value })
}
