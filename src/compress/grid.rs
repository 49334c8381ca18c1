//! A recipe many times over, with some of its values changed.

use super::recipe::Recipe;
use super::{Error, Result};
use toml::{Table, Value};

/// A key of a recipe and the values it is to have in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The key as it was given: `pass.2.sparsity`, `calibration.windows`, or `sparsity` where only one pass has it.
    pub key: String,
    /// The values.
    pub values: Vec<Value>,
}

/// One point of a grid: what was set, and the recipe that came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Key and value of each axis.
    pub set: Vec<(String, Value)>,
    /// The recipe.
    pub recipe: Recipe,
}

impl Point {
    /// A name for a folder: `sparsity=0.5,scheme=int8`.
    pub fn name(&self) -> String {
        let one = |(key, value): &(String, Value)| format!("{key}={}", plain(value));
        let name = self.set.iter().map(one).collect::<Vec<_>>().join(",");
        let fits = |c: char| if c.is_alphanumeric() || "=,.-_".contains(c) { c } else { '_' };
        name.chars().map(fits).collect()
    }
}

/// A value without quotes.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

impl Axis {
    /// Reads `key=a,b,c`. Each value is what TOML makes of it, or a word; a list in brackets is one value.
    pub fn parse(text: &str) -> Result<Axis> {
        let wrong = |expected: &str| Error::Setting {
            setting: "--grid",
            expected: expected.to_string(),
            got: text.to_string(),
        };
        let (key, list) = text.split_once('=').ok_or_else(|| wrong("KEY=VALUE,VALUE,.."))?;
        let values: Vec<Value> = pieces(list).into_iter().map(value_of).collect();
        if key.trim().is_empty() || pieces(list).iter().any(|piece| piece.is_empty()) {
            return Err(wrong("KEY=VALUE,VALUE,.."));
        }
        for (at, value) in values.iter().enumerate() {
            if values[..at].contains(value) {
                return Err(wrong("each value once"));
            }
        }
        Ok(Axis { key: key.trim().to_string(), values })
    }
}

/// What commas outside of brackets and quotes part.
fn pieces(list: &str) -> Vec<&str> {
    let (mut found, mut depth, mut quoted, mut start) = (vec![], 0usize, false, 0);
    for (at, c) in list.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth = depth.saturating_sub(1),
            ',' if !quoted && depth == 0 => {
                found.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(list[start..].trim());
    found
}

fn value_of(text: &str) -> Value {
    let read = toml::from_str::<Table>(&format!("value = {text}"));
    let read = read.ok().and_then(|mut table| table.remove("value"));
    read.unwrap_or_else(|| Value::String(text.to_string()))
}

/// All points of a grid over a recipe, the last axis fastest. `place` is the recipe's file, for errors.
pub fn grid(place: &str, text: &str, axes: &[Axis]) -> Result<Vec<Point>> {
    let wrong = |reason: String| Error::Recipe { place: place.to_string(), reason };
    let base: Table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    // What is wrong without the grid is told without it.
    let resolved = Recipe::parse(place, text)?;
    let resolved: Table = toml::from_str(&resolved.to_toml()).expect("a recipe's own text");
    let mut points = vec![(vec![], base)];
    for axis in axes {
        let path = path_of(&resolved, &axis.key).map_err(wrong)?;
        let mut next = vec![];
        for (set, table) in &points {
            for value in &axis.values {
                let (mut set, mut table): (Vec<(String, Value)>, Table) = (set.clone(), table.clone());
                put(&mut table, &path, value.clone());
                set.push((axis.key.clone(), value.clone()));
                next.push((set, table));
            }
        }
        points = next;
    }
    let point = |(set, table): (Vec<(String, Value)>, Table)| {
        let text = toml::to_string(&table).expect("a table of values is TOML");
        let named = |(key, value): &(String, Value)| format!("{key}={}", plain(value));
        let place = format!("{place} with {}", set.iter().map(named).collect::<Vec<_>>().join(", "));
        Ok(Point { recipe: Recipe::parse(&place, &text)?, set })
    };
    points.into_iter().map(point).collect()
}

/// Where a key lies: names of tables, and numbers of passes.
fn path_of(resolved: &Table, key: &str) -> Result<Vec<String>, String> {
    let parts: Vec<String> = key.split('.').map(str::to_string).collect();
    let passes = resolved.get("pass").and_then(Value::as_array).map_or(&[][..], |passes| &passes[..]);
    if parts[0] == "pass" {
        let number = parts.get(1).and_then(|part| part.parse::<usize>().ok());
        return match number.filter(|number| (1..=passes.len()).contains(number)) {
            Some(_) if parts.len() > 2 => Ok(parts),
            _ => Err(format!(
                "`{key}` names no key of a pass\n  hint: pass.1.KEY to pass.{}.KEY",
                passes.len()
            )),
        };
    }
    if ["seed", "calibration", "data"].contains(&parts[0].as_str()) {
        return Ok(parts);
    }
    let has = |pass: &Value| parts.iter().try_fold(pass, |table, part| table.get(part)).is_some();
    let found: Vec<usize> =
        passes.iter().enumerate().filter(|(_, pass)| has(pass)).map(|(n, _)| n + 1).collect();
    match found[..] {
        [number] => Ok([vec!["pass".to_string(), number.to_string()], parts].concat()),
        [] => Err(format!("no pass has the key `{key}`\n  hint: pass.1.{key} sets it in the first pass")),
        _ => {
            let all: Vec<String> = found.iter().map(|number| format!("pass.{number}.{key}")).collect();
            Err(format!("several passes have the key `{key}`\n  hint: say which: {}", all.join(", ")))
        }
    }
}

/// Sets a value, making the tables on the way.
fn put(table: &mut Table, path: &[String], value: Value) {
    match path {
        [last] => drop(table.insert(last.clone(), value)),
        [pass, number, rest @ ..] if pass == "pass" && !rest.is_empty() => {
            let at = number.parse::<usize>().expect("checked when the path was found") - 1;
            let passes = table.get_mut("pass").and_then(Value::as_array_mut);
            let pass = passes.and_then(|passes| passes.get_mut(at)).and_then(Value::as_table_mut);
            put(pass.expect("checked when the path was found"), rest, value);
        }
        [first, rest @ ..] => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            put(inner.as_table_mut().expect("just made one"), rest, value);
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[[pass]]\nkind = \"smoothquant\"\n[[pass]]\nkind = \"quantize\"\nscheme = \"int8\"\n";

    fn names(axes: &[&str]) -> Result<Vec<String>> {
        let axes = axes.iter().map(|text| Axis::parse(text)).collect::<Result<Vec<_>>>()?;
        Ok(grid("r.toml", TEXT, &axes)?.iter().map(Point::name).collect())
    }

    #[test]
    fn every_combination_is_a_point_and_a_key_finds_its_pass() {
        let all = names(&["scheme=int8,int4-g32", "alpha=0.25,0.5"]).unwrap();
        let expected = [
            "scheme=int8,alpha=0.25",
            "scheme=int8,alpha=0.5",
            "scheme=int4-g32,alpha=0.25",
            "scheme=int4-g32,alpha=0.5",
        ];
        assert_eq!(all, expected);
        let axis = Axis::parse("pass.2.targets=[\"*c_fc*\"],[\"*c_attn*\", \"*c_fc*\"]").unwrap();
        assert_eq!(axis.values.len(), 2);
        let points = grid("r.toml", TEXT, &[axis]).unwrap();
        assert!(points[1].recipe.to_toml().contains("c_attn"));
    }

    #[test]
    fn keys_and_values_that_do_not_fit_are_told() {
        let error = |axes: &[&str]| names(axes).unwrap_err().to_string();
        assert!(error(&["sparsity=0.5"]).contains("no pass has the key `sparsity`"));
        assert!(error(&["pass.3.scheme=int8"]).contains("pass.2.KEY"));
        assert!(error(&["ignore=[],[\"a\"]"]).contains("no pass has the key"));
        assert!(error(&["pass.2.schema=int8"]).contains("did you mean `scheme`"));
        assert!(error(&["scheme=int8,int9"]).contains("int9"));
        assert!(error(&["kind=awq"]).contains("several passes"));
        assert!(error(&["scheme"]).contains("KEY=VALUE"));
        assert!(error(&["scheme=int8,int8"]).contains("each value once"));
        assert!(error(&["scheme=int8,"]).contains("KEY=VALUE"));
    }
}
