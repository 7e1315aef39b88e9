// Copies a topic exactly once through franz-go, in a group whose members join and leave.
//
//	franz-go produce BROKERS TOPIC RECORDS
//	    writes records with an idempotent producer and each codec in turn; prints "produced=N".
//	franz-go copy BROKERS INPUT OUTPUT GROUP RECORDS
//	    two members of a cooperative group copy the input. Each transaction contains the offsets of its
//	    records. Every third transaction is aborted, and a third member joins and leaves. Prints
//	    "committed=N aborted=N" (records).
//	franz-go count BROKERS TOPIC
//	    prints "committed=N distinct=N uncommitted=N": the records of a read_committed consumer, its
//	    distinct values, and the records of a read_uncommitted consumer.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Second)
	defer cancel()
	var err error
	switch args := os.Args[1:]; args[0] {
	case "produce":
		err = produce(ctx, args[1], args[2], number(args[3]))
	case "copy":
		err = copyAll(ctx, args[1], args[2], args[3], args[4], int64(number(args[5])))
	case "count":
		err = count(ctx, args[1], args[2])
	default:
		err = fmt.Errorf("unknown command %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) int {
	parsed, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return parsed
}

func produce(ctx context.Context, brokers, topic string, records int) error {
	codecs := []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	}
	var produced atomic.Int64
	for at, codec := range codecs {
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codec))
		if err != nil {
			return err
		}
		var failed error
		var once sync.Once
		for value := at; value < records; value += len(codecs) {
			text := strconv.Itoa(value)
			client.Produce(ctx, kgo.KeySliceRecord([]byte(text), []byte(text)), func(_ *kgo.Record, err error) {
				if err != nil {
					once.Do(func() { failed = err })
					return
				}
				produced.Add(1)
			})
		}
		err = errors.Join(client.Flush(ctx), failed)
		client.Close()
		if err != nil {
			return err
		}
	}
	fmt.Printf("produced=%d\n", produced.Load())
	return nil
}

type copier struct {
	brokers, input, output, group string
	records                       int64
	committed, aborted            atomic.Int64
	transactions                  atomic.Int64
}

func copyAll(ctx context.Context, brokers, input, output, group string, records int64) error {
	c := &copier{brokers: brokers, input: input, output: output, group: group, records: records}
	var members sync.WaitGroup
	failures := make(chan error, 3)
	run := func(member string, isOver func() bool) {
		members.Add(1)
		go func() {
			defer members.Done()
			if err := c.run(ctx, member, isOver); err != nil {
				failures <- fmt.Errorf("%s: %w", member, err)
			}
		}()
	}
	isDone := func() bool { return c.committed.Load() >= c.records }
	run("a", isDone)
	run("b", isDone)
	// The third member joins and leaves while the others copy.
	for c.committed.Load() < c.records/4 && ctx.Err() == nil && len(failures) == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	run("c", func() bool { return c.committed.Load() >= c.records*3/4 })
	members.Wait()
	close(failures)
	var err error
	for failure := range failures {
		err = errors.Join(err, failure)
	}
	if err != nil {
		return err
	}
	fmt.Printf("committed=%d aborted=%d\n", c.committed.Load(), c.aborted.Load())
	return nil
}

func (c *copier) run(ctx context.Context, member string, isOver func() bool) error {
	session, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers(c.brokers),
		kgo.TransactionalID(c.group+"-"+member),
		kgo.ConsumerGroup(c.group),
		kgo.ConsumeTopics(c.input),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.RequireStableFetchOffsets(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DefaultProduceTopic(c.output),
	)
	if err != nil {
		return err
	}
	defer session.Close()
	for !isOver() {
		poll, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		fetches := session.PollRecords(poll, 100)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, failed := range fetches.Errors() {
			if !errors.Is(failed.Err, context.DeadlineExceeded) {
				return failed.Err
			}
		}
		if fetches.NumRecords() == 0 {
			continue
		}
		if err := session.Begin(); err != nil {
			return err
		}
		promise := kgo.AbortingFirstErrPromise(session.Client())
		fetches.EachRecord(func(record *kgo.Record) {
			session.Produce(ctx, kgo.KeySliceRecord(record.Key, append([]byte("copy of "), record.Value...)), promise.Promise())
		})
		wanted := kgo.TransactionEndTry(promise.Err() == nil && c.transactions.Add(1)%3 != 0)
		committed, err := session.End(ctx, wanted)
		if err != nil {
			return err
		}
		if committed {
			c.committed.Add(int64(fetches.NumRecords()))
		} else {
			c.aborted.Add(int64(fetches.NumRecords()))
		}
	}
	return nil
}

func count(ctx context.Context, brokers, topic string) error {
	ends, err := endOffsets(ctx, brokers, topic)
	if err != nil {
		return err
	}
	counts := make([]int, 2)
	var distinct int
	for at, isolation := range []kgo.IsolationLevel{kgo.ReadUncommitted(), kgo.ReadCommitted()} {
		values := map[string]struct{}{}
		client, err := kgo.NewClient(
			kgo.SeedBrokers(brokers),
			kgo.ConsumeTopics(topic),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.FetchIsolationLevel(isolation),
			// Control records end each partition: without them the end would look like a pause.
			kgo.KeepControlRecords(),
		)
		if err != nil {
			return err
		}
		position := map[int32]int64{}
		for !isAt(position, ends) {
			fetches := client.PollFetches(ctx)
			if err := fetches.Err0(); err != nil {
				return err
			}
			fetches.EachRecord(func(record *kgo.Record) {
				position[record.Partition] = record.Offset + 1
				if !record.Attrs.IsControl() {
					counts[at]++
					values[string(record.Value)] = struct{}{}
				}
			})
		}
		distinct = len(values)
		client.Close()
	}
	fmt.Printf("committed=%d distinct=%d uncommitted=%d\n", counts[1], distinct, counts[0])
	return nil
}

func isAt(position, ends map[int32]int64) bool {
	for partition, end := range ends {
		if position[partition] < end {
			return false
		}
	}
	return true
}

func endOffsets(ctx context.Context, brokers, topic string) (map[int32]int64, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	wanted := kmsg.NewMetadataRequestTopic()
	wanted.Topic = kmsg.StringPtr(topic)
	metadata := kmsg.NewPtrMetadataRequest()
	metadata.Topics = append(metadata.Topics, wanted)
	told, err := metadata.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	list := kmsg.NewPtrListOffsetsRequest()
	list.ReplicaID = -1
	asked := kmsg.NewListOffsetsRequestTopic()
	asked.Topic = topic
	for _, partition := range told.Topics[0].Partitions {
		one := kmsg.NewListOffsetsRequestTopicPartition()
		one.Partition = partition.Partition
		one.Timestamp = -1
		asked.Partitions = append(asked.Partitions, one)
	}
	list.Topics = append(list.Topics, asked)
	listed, err := list.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	ends := map[int32]int64{}
	for _, partition := range listed.Topics[0].Partitions {
		if err := kerr.ErrorForCode(partition.ErrorCode); err != nil {
			return nil, err
		}
		ends[partition.Partition] = partition.Offset
	}
	return ends, nil
}
