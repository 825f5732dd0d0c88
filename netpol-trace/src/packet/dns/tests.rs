use expect_test::{Expect, expect};
use proptest::prelude::*;

use crate::packet::dns::*;

/// A response with one question and these records.
fn message(question: &[u8], kind: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let mut message = vec![0, 1, 0x81, 0x80, 0, 1];
    message.extend((records.len() as u16).to_be_bytes());
    message.extend([0; 4]);
    message.extend(question);
    message.extend(kind.to_be_bytes());
    message.extend(IN.to_be_bytes());
    message.extend(records.concat());
    message
}

fn rr(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = owner.to_vec();
    record.extend(kind.to_be_bytes());
    record.extend(IN.to_be_bytes());
    record.extend(ttl.to_be_bytes());
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record
}

const WWW: &[u8] = b"\x03www\x07example\x03ORG\0";
const QUESTION_NAME: &[u8] = &[0xc0, 12];

fn check(message: &[u8], expected: Expect) {
    let shown = parse(message).map_or("nothing".to_owned(), |answer| {
        let addresses: Vec<String> = answer.addresses.iter().map(|a| format!("{} {} s", a.ip, a.ttl)).collect();
        format!("{} = {}", answer.names.join(" > "), addresses.join(", "))
    });
    expected.assert_eq(&shown);
}

#[test]
fn addresses() {
    let one = message(WWW, A, &[rr(QUESTION_NAME, A, 30, &[10, 0, 0, 7])]);
    check(&one, expect!["www.example.org = 10.0.0.7 30 s"]);
    let mut six = [0; 16];
    (six[0], six[15]) = (0xfd, 7);
    check(&message(WWW, AAAA, &[rr(QUESTION_NAME, AAAA, 5, &six)]), expect!["www.example.org = fd00::7 5 s"]);
}

#[test]
fn aliases() {
    let cdn = b"\x01c\x03cdn\x03net\0";
    let records = [rr(QUESTION_NAME, CNAME, 60, cdn), rr(cdn, A, 20, &[192, 0, 2, 1]), rr(cdn, A, 20, &[192, 0, 2, 2])];
    check(&message(WWW, A, &records), expect!["www.example.org > c.cdn.net = 192.0.2.1 20 s, 192.0.2.2 20 s"]);
}

#[test]
fn records_of_other_names_are_left_out() {
    let other = rr(b"\x04bank\x03com\0", A, 9999, &[6, 6, 6, 6]);
    check(&message(WWW, A, &[other]), expect!["nothing"]);
    check(&message(WWW, 16, &[rr(QUESTION_NAME, 16, 30, b"\x03txt")]), expect!["nothing"]);
    let mut refused = message(WWW, A, &[rr(QUESTION_NAME, A, 30, &[10, 0, 0, 7])]);
    refused[3] = 0x83;
    check(&refused, expect!["nothing"]);
    let mut query = message(WWW, A, &[rr(QUESTION_NAME, A, 30, &[10, 0, 0, 7])]);
    query[2] = 1;
    check(&query, expect!["nothing"]);
}

#[test]
fn a_truncated_answer_gives_its_whole_records() {
    let two = message(WWW, A, &[rr(QUESTION_NAME, A, 30, &[10, 0, 0, 7]), rr(QUESTION_NAME, A, 30, &[10, 0, 0, 8])]);
    check(&two[..two.len() - 1], expect!["www.example.org = 10.0.0.7 30 s"]);
    check(&two[..20], expect!["nothing"]);
}

#[test]
fn compression_loops_end() {
    // The question's name points at itself; two records' names point at each other.
    check(&message(&[0xc0, 12], A, &[rr(QUESTION_NAME, A, 30, &[10, 0, 0, 7])]), expect!["nothing"]);
    let at = (HEADER + WWW.len() + 4) as u8;
    let looped = [rr(&[0xc0, at + 2], A, 30, &[10, 0, 0, 7])];
    check(&message(WWW, A, &looped), expect!["nothing"]);
    let long = [&[63; 64][..], &[63; 64], &[63; 64], &[63; 64], &[0]].concat();
    check(&message(&long, A, &[rr(QUESTION_NAME, A, 30, &[10, 0, 0, 7])]), expect!["nothing"]);
}

#[test]
fn ten_thousand_records_stay_few() {
    let records: Vec<Vec<u8>> =
        (0..10_000u16).map(|i| rr(QUESTION_NAME, A, 30, &[10, 0, (i >> 8) as u8, i as u8])).collect();
    let answer = parse(&message(WWW, A, &records)).unwrap();
    assert_eq!(answer.addresses.len(), MAX_ADDRESSES);
}

#[test]
fn names_cant_forge_a_line() {
    let evil = b"\x1bx\"},\n{\"kind\":\"drop\"\x1b[31mred\xc3\xa9\0";
    let mut question = vec![evil.len() as u8 - 2];
    question.extend(&evil[1..]);
    check(
        &message(&question, A, &[rr(QUESTION_NAME, A, 30, &[10, 0, 0, 7])]),
        expect![[r"x\034\125\044\010\123\034kind\034\058\034drop\034\027\09131mred\195\169 = 10.0.0.7 30 s"]],
    );
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(safe(parse(&bytes)));
    }

    /// Nearly valid messages get further.
    #[test]
    fn damaged_answers_are_survived(
        at in 0usize..120, value in any::<u8>(), cut in 0usize..120, kinds in prop::collection::vec(any::<bool>(), 0..6),
    ) {
        let records: Vec<Vec<u8>> = kinds
            .iter()
            .map(|alias| if *alias { rr(QUESTION_NAME, CNAME, 1, &[0xc0, 16]) } else { rr(QUESTION_NAME, A, 1, &[1, 2, 3, 4]) })
            .collect();
        let mut bytes = message(WWW, A, &records);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        prop_assert!(safe(parse(&bytes)));
    }
}

fn safe(answer: Option<DnsAnswer>) -> bool {
    answer.is_none_or(|answer| {
        answer.addresses.len() <= MAX_ADDRESSES
            && answer.names.len() <= MAX_NAMES
            && answer.names.iter().all(|name| name.len() <= 4 * MAX_NAME && name.chars().all(|c| c.is_ascii_graphic()))
    })
}
