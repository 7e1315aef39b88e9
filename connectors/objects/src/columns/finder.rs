//! [`FieldFinder`]: looks up many fields by their names.

use std::collections::HashMap;

use arrow::datatypes::{FieldRef, Fields};

/// Fewer fields are searched one by one.
const SEARCHED: usize = 16;

/// Finds fields by name. Names mostly come in the order of the fields, which costs one comparison;
/// the first other name makes a map. `Fields::find` takes a time that grows with the number of
/// fields, so a look-up of each of them would grow with its square.
#[derive(Default)]
pub(super) struct FieldFinder<'a> {
    fields: &'a [FieldRef],
    /// The index after the last field that was found.
    next: usize,
    by_name: Option<HashMap<&'a str, usize>>,
}

impl<'a> FieldFinder<'a> {
    pub(super) fn new(fields: &'a Fields) -> Self {
        Self { fields, next: 0, by_name: None }
    }

    /// The first field with this name, and its index.
    pub(super) fn find(&mut self, name: &str) -> Option<(usize, &'a FieldRef)> {
        let fields = self.fields;
        let is_it = |field: &FieldRef| field.name() == name;
        let index = match fields.get(self.next) {
            Some(field) if is_it(field) => self.next,
            _ if fields.len() <= SEARCHED => fields.iter().position(is_it)?,
            _ => *self.by_name.get_or_insert_with(|| index_of(fields)).get(name)?,
        };
        self.next = index + 1;
        Some((index, &fields[index]))
    }
}

fn index_of(fields: &[FieldRef]) -> HashMap<&str, usize> {
    // Of two fields with one name the first one counts.
    fields.iter().enumerate().rev().map(|(index, field)| (field.name().as_str(), index)).collect()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    #[test]
    fn fields_are_found_in_any_order() {
        for count in [0, 1, SEARCHED, SEARCHED + 1, 100] {
            let fields: Fields = (0..count).map(|n| Field::new(format!("c{n}"), DataType::Int64, true)).collect();
            let mut finder = FieldFinder::new(&fields);
            for index in (0..count).chain((0..count).rev()).chain((0..count).step_by(3)) {
                let found = finder.find(&format!("c{index}")).map(|(at, field)| (at, field.name().as_str()));
                assert_eq!(found, Some((index, fields[index].name().as_str())));
                assert!(finder.find("other").is_none());
            }
        }
    }
}
