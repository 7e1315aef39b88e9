//! Asks the server for the characters of its charsets: each valid code, converted by the server
//! itself.

use std::sync::Arc;

use trunkline_connector::{Error, Result};

use super::query::QueryConnection;
use super::quote::hex;
use crate::schema::charset::{Charset, CodeTable, Structure, four_byte_index};

/// The number of four-byte codes of GB 18030 within the Basic Multilingual Plane: those that begin
/// with 81 to 84.
const FOUR_BYTE_CODES: usize = 4 * 12_600;

/// Loads the tables of charsets.
pub(crate) async fn load_charsets(connection: &mut QueryConnection, charsets: &[Arc<Charset>]) -> Result<()> {
    for charset in charsets {
        let Some(structure) = charset.unloaded() else { continue };
        let table = read_table(connection, &charset.name, structure).await?;
        charset.load(table);
    }
    Ok(())
}

/// The characters of the 256 bytes of a single-byte charset. Invalid bytes (those of `ascii` from
/// 80) become U+FFFD.
pub(crate) async fn read_single_byte_table(connection: &mut QueryConnection, charset: &str) -> Result<Vec<char>> {
    let bytes: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let together = convert_texts(connection, charset, &[bytes.concat()]).await?.pop().flatten();
    let together: Vec<char> = together.unwrap_or_default().chars().collect();
    if together.len() == bytes.len() {
        return Ok(together);
    }
    let each = convert_each(connection, charset, &bytes).await?;
    Ok(each.into_iter().map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

async fn read_table(connection: &mut QueryConnection, charset: &str, structure: Structure) -> Result<CodeTable> {
    let empty = || vec![None; 1 << 16];
    let mut table = CodeTable { single: vec![None; 256], double: empty(), triple: Vec::new(), four: Vec::new() };
    let singles: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    // Each by itself: an incomplete code would invalidate the others.
    for (code, character) in singles.iter().zip(convert_each(connection, charset, &singles).await?) {
        table.single[usize::from(code[0])] = character;
    }
    let trails: Vec<u8> = (0x40..=0xfe).filter(|byte| *byte != 0x7f).collect();
    let rows: Vec<Vec<Vec<u8>>> =
        (0x81..=0xfe).map(|lead| trails.iter().map(|trail| vec![lead, *trail]).collect()).collect();
    for (code, character) in convert(connection, charset, &rows).await? {
        table.double[usize::from(code[0]) << 8 | usize::from(code[1])] = character;
    }
    if structure == Structure::Euc {
        let rows: Vec<Vec<Vec<u8>>> =
            (0xa1..=0xfe).map(|middle| (0xa1..=0xfe).map(|last| vec![0x8f, middle, last]).collect()).collect();
        table.triple = empty();
        for (code, character) in convert(connection, charset, &rows).await? {
            table.triple[usize::from(code[1]) << 8 | usize::from(code[2])] = character;
        }
    }
    if structure == Structure::Gb18030 {
        table.four = vec![None; FOUR_BYTE_CODES];
        for lead in 0x81..=0x84u8 {
            let last = |second: u8, third: u8| (b'0'..=b'9').map(move |last| vec![lead, second, third, last]);
            let rows: Vec<Vec<Vec<u8>>> =
                (b'0'..=b'9').map(|second| (0x81..=0xfe).flat_map(|third| last(second, third)).collect()).collect();
            for (code, character) in convert(connection, charset, &rows).await? {
                let index = <[u8; 4]>::try_from(code.as_slice()).ok().and_then(four_byte_index);
                if let Some(entry) = index.and_then(|index| table.four.get_mut(index)) {
                    *entry = character;
                }
            }
        }
    }
    Ok(table)
}

/// The characters of codes. The codes of a row are converted together, unless one of them is
/// invalid.
async fn convert(
    connection: &mut QueryConnection,
    charset: &str,
    rows: &[Vec<Vec<u8>>],
) -> Result<Vec<(Vec<u8>, Option<char>)>> {
    // A line feed is the same in all of these charsets, and no part of another code.
    let joined: Vec<Vec<u8>> = rows.iter().map(|row| row.join(&b'\n')).collect();
    let texts = convert_texts(connection, charset, &joined).await?;
    let mut converted = Vec::new();
    for (row, text) in rows.iter().zip(texts) {
        let lines: Vec<String> = text.map(|text| text.split('\n').map(str::to_owned).collect()).unwrap_or_default();
        let is_complete = lines.len() == row.len() && lines.iter().all(|line| line.chars().count() == 1);
        let characters = match is_complete {
            true => lines.iter().map(|line| line.chars().next()).collect(),
            false => convert_each(connection, charset, row).await?,
        };
        converted.extend(row.iter().cloned().zip(characters));
    }
    Ok(converted)
}

/// The character of each code; `None` for an invalid one.
async fn convert_each(connection: &mut QueryConnection, charset: &str, codes: &[Vec<u8>]) -> Result<Vec<Option<char>>> {
    let texts = convert_texts(connection, charset, codes).await?;
    let only = |text: String| {
        let mut characters = text.chars();
        characters.next().filter(|_| characters.next().is_none())
    };
    Ok(texts.into_iter().map(|text| text.and_then(only)).collect())
}

/// The texts of byte strings; `None` for an invalid one.
async fn convert_texts(
    connection: &mut QueryConnection,
    charset: &str,
    strings: &[Vec<u8>],
) -> Result<Vec<Option<String>>> {
    // The name comes from the server, so it needs no quotes.
    let convert = |bytes: &Vec<u8>| format!("CONVERT(CONVERT(x'{}' USING {charset}) USING utf8mb4)", hex(bytes));
    let columns: Vec<String> = strings.iter().map(convert).collect();
    let rows = connection.query(&format!("SELECT {}", columns.join(", "))).await?;
    let texts = rows.into_iter().next().filter(|row| row.len() == strings.len());
    texts.ok_or_else(|| {
        let server = connection.server_label();
        Error::external("mysql.charset", format!("{server} does not convert the character set {charset}"))
    })
}
