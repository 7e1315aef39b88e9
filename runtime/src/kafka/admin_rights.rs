//! What the client's principal may do with existing topics and with groups, as the brokers report
//! it.

use std::collections::BTreeMap;
use std::ffi::c_char;

use rdkafka::bindings::{self, rd_kafka_AclOperation_t as AclOperation, rd_kafka_admin_op_t as Operation};

use super::admin_api::{AdminClient, Outcome, array, c_text, check, in_order, text};

/// The names of the permitted operations; `None` if the broker does not say.
pub(super) type Permitted = Option<Vec<&'static str>>;

impl AdminClient {
    /// The permitted operations on each topic, in order.
    pub(super) fn permitted_on_topics(&self, names: &[&str]) -> Outcome<Vec<Outcome<Permitted>>> {
        let texts = names.iter().map(|name| c_text(name)).collect::<Outcome<Vec<_>>>()?;
        let mut pointers: Vec<*const c_char> = texts.iter().map(|name| name.as_ptr()).collect();
        let event = self.call(Operation::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, |client, options, queue| {
            // SAFETY: all pointers are alive; the call copies the names and the options.
            unsafe {
                let topics = bindings::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
                bindings::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
                bindings::rd_kafka_DescribeTopics(client, topics, options, queue);
                bindings::rd_kafka_TopicCollection_destroy(topics);
            }
        })?;
        // SAFETY: the event is the result of this operation and owns all that is read here.
        let results = unsafe {
            let mut count = 0;
            let result = bindings::rd_kafka_event_DescribeTopics_result(event.pointer());
            let topics = bindings::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            let read = |topic: &*const _| {
                let name = text(bindings::rd_kafka_TopicDescription_name(*topic));
                let error = bindings::rd_kafka_TopicDescription_error(*topic);
                let failure = check(bindings::rd_kafka_error_code(error), bindings::rd_kafka_error_string(error));
                let mut count = 0;
                let list = bindings::rd_kafka_TopicDescription_authorized_operations(*topic, &raw mut count);
                (name, failure.map(|()| permitted(list, count)))
            };
            array(topics, count).iter().map(read).collect::<BTreeMap<_, _>>()
        };
        Ok(in_order(names.iter().copied(), results))
    }

    /// The permitted operations on each group, in order. A group need not exist.
    pub(super) fn permitted_on_groups(&self, names: &[&str]) -> Outcome<Vec<Outcome<Permitted>>> {
        let texts = names.iter().map(|name| c_text(name)).collect::<Outcome<Vec<_>>>()?;
        let mut pointers: Vec<*const c_char> = texts.iter().map(|name| name.as_ptr()).collect();
        let event = self.call(Operation::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, |client, options, queue| {
            // SAFETY: all pointers are alive; the call copies the names and the options.
            unsafe {
                bindings::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
                bindings::rd_kafka_DescribeConsumerGroups(
                    client,
                    pointers.as_mut_ptr(),
                    pointers.len(),
                    options,
                    queue,
                );
            }
        })?;
        // SAFETY: the event is the result of this operation and owns all that is read here.
        let results = unsafe {
            let mut count = 0;
            let result = bindings::rd_kafka_event_DescribeConsumerGroups_result(event.pointer());
            let groups = bindings::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
            let read = |group: &*const _| {
                let name = text(bindings::rd_kafka_ConsumerGroupDescription_group_id(*group));
                let error = bindings::rd_kafka_ConsumerGroupDescription_error(*group);
                let failure = check(bindings::rd_kafka_error_code(error), bindings::rd_kafka_error_string(error));
                let mut count = 0;
                let list = bindings::rd_kafka_ConsumerGroupDescription_authorized_operations(*group, &raw mut count);
                (name, failure.map(|()| permitted(list, count)))
            };
            array(groups, count).iter().map(read).collect::<BTreeMap<_, _>>()
        };
        Ok(in_order(names.iter().copied(), results))
    }
}

/// # Safety
/// The list must be null or have `count` elements.
unsafe fn permitted(list: *const AclOperation, count: usize) -> Permitted {
    if list.is_null() {
        return None;
    }
    // SAFETY: see the function's contract.
    let operations = unsafe { std::slice::from_raw_parts(list, count) };
    let name = |operation: &AclOperation| {
        Some(match operation {
            AclOperation::RD_KAFKA_ACL_OPERATION_READ => "Read",
            AclOperation::RD_KAFKA_ACL_OPERATION_WRITE => "Write",
            AclOperation::RD_KAFKA_ACL_OPERATION_CREATE => "Create",
            _ => return None,
        })
    };
    Some(operations.iter().filter_map(name).collect())
}
