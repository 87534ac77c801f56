// Which rows of codes are the first of their kind.
//
// Compiled once per CPU capability (see capability.h). Three steps, each of which streams through memory in order:
//   1. rows are dealt out to partitions by their hash: chunk by chunk, a chunk for each thread, in order of rows;
//   2. each partition is looked up in a table of its own, small enough for L2, and the answer to each of its rows takes the
//      place of the row;
//   3. the rows are walked through again in their order, and each takes the next answer of its partition: the numbers of the
//      groups are then a running count, and every result is written front to back.
// A partition keeps the order of rows, so the answers do not depend on the number of threads, nor on the hash.
//
// What was tried: a first pass that counts, for partitions without gaps (a fifth slower: it reads and hashes all rows once
// more); answers scattered to rows as the tables give them (three cache misses a row).
#include "first_occurrence.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "stream.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Rows of a partition lie in blocks of so many, chained: however skewed the rows, memory is enough and nothing is counted
// beforehand.
constexpr uint32_t kBlock = 256;
// Rows that are hashed together in the first step, and whose answers are fetched together in the last, so that their cache
// misses overlap.
constexpr int64_t kBatch = 256;
// Rows between the fetch of a slot of a table and its use.
constexpr uint32_t kAhead = 12;
// Of the scratch memory: of every block's answers at least.
constexpr size_t kAlignment = 4096;

// Slots of workspaces.
enum { kBuffers, kTable, kKinds, kMoreKinds };

// ---------------------------------------------------------------- rows as partitions hold them

// A code whose first word is its hash (see code_hash.h).
template <int words>
struct Whole {
  uint64_t hash;
  uint64_t rest[words - 1];

  static int64_t words_of(const Codes&) { return words; }
  static Whole of(const Codes& codes, int64_t row, uint64_t hash) {
    Whole w;
    w.hash = hash;
    for (int i = 0; i + 1 < words; ++i) w.rest[i] = codes.data[row * words + i + 1];
    return w;
  }
  bool equals(const Whole& other, const Codes&) const {
    uint64_t difference = hash ^ other.hash;
    for (int i = 0; i + 1 < words; ++i) difference |= rest[i] ^ other.rest[i];
    return difference == 0;
  }
};

template <>
struct Whole<1> {
  uint64_t hash;

  static int64_t words_of(const Codes&) { return 1; }
  static Whole of(const Codes&, int64_t, uint64_t hash) { return {hash}; }
  bool equals(const Whole& other, const Codes&) const { return hash == other.hash; }
};

// Wide codes stay where they are.
struct Reference {
  uint64_t hash, row;

  static int64_t words_of(const Codes& codes) { return codes.words; }
  static Reference of(const Codes&, int64_t row, uint64_t hash) { return {hash, static_cast<uint64_t>(row)}; }
  bool equals(const Reference& other, const Codes& codes) const {
    return hash == other.hash && std::memcmp(codes.row(row), codes.row(other.row), 8 * codes.words) == 0;
  }
};

// ---------------------------------------------------------------- how the work is cut

// Partitions of 4,000 to 30,000 rows: more of them would make the first and the last step miss the caches, fewer the second.
int partition_bits(int64_t rows) {
  const int width = std::bit_width(static_cast<uint64_t>(rows));
  return width <= 22 ? std::clamp(width - 13, 0, 8) : std::min(9 + (width - 23) / 2, 12);
}

struct Plan {
  int bits;  // of the hash that choose a partition
  int64_t partitions, chunks, rows;

  explicit Plan(int64_t n) : bits(partition_bits(n)), partitions(int64_t{1} << bits), rows(n) {
    // a chunk leaves a block half empty in each partition, and has some overhead
    const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(8192, partitions * kBlock / 2));
    chunks = std::min<int64_t>(at::get_num_threads(), most);
  }
  int64_t begin(int64_t chunk) const { return chunk == chunks ? rows : rows / kBatch * chunk / chunks * kBatch; }
  int64_t first_block(int64_t chunk) const { return begin(chunk) / kBlock + chunk * (partitions + 1); }
  int64_t blocks() const { return first_block(chunks) + 1; }
  int64_t partition(uint64_t hash) const { return static_cast<int64_t>(hash >> 1 >> (63 - bits)); }
};

// ---------------------------------------------------------------- the three steps

// Answers: with groups, the number of the row's kind in its partition and what is known of the row; without, whether it is the
// first of its kind.
template <typename Row, bool groups>
class Run {
  using Answer = std::conditional_t<groups, uint32_t, bool>;
  static constexpr uint32_t kFirst = 1u << 31;  // it is the first of its kind
  static constexpr uint32_t kEarly = 1u << 30;  // its kind appeared in an earlier chunk
  static constexpr uint32_t kKind = kEarly - 1;  // its number: of 2^32 rows a partition holds about a million kinds
  static constexpr uint32_t kBuffer = 512 / std::bit_floor(sizeof(Row));  // rows: whole cache lines
  static constexpr size_t kBlockBytes = kBlock * sizeof(Row), kAnswerBytes = kBlock * sizeof(Answer);

 public:
  static size_t scratch_bytes(const Plan& plan) {
    return kAlignment + plan.blocks() * kBlockBytes + entries(plan) * sizeof(uint32_t) + plan.rows * sizeof(uint16_t);
  }

  Run(const FirstOccurrence& args, const Plan& plan, void* scratch)
      : args_(args),
        plan_(plan),
        blocks_(static_cast<char*>(scratch) + -reinterpret_cast<uintptr_t>(scratch) % kAlignment),
        kinds_(reinterpret_cast<uint32_t*>(blocks_ + plan.blocks() * kBlockBytes)),
        partition_of_(reinterpret_cast<uint16_t*>(kinds_ + entries(plan))),
        next_(plan.blocks(), 0),
        chains_(plan.chunks * plan.partitions),
        partition_begin_(plan.partitions + 1),
        kinds_before_((plan.chunks + 1) * plan.partitions) {}

  void operator()() {
    for_chunks([this](int64_t chunk) { deal(chunk); });
    find_kinds();
    std::vector<int64_t> first_group(plan_.chunks + 1);
    for (int64_t c = 0; c < plan_.chunks; ++c) {
      int64_t firsts = 0;
      for (int64_t p = 0; p < plan_.partitions; ++p) firsts += kinds_before(c + 1, p) - kinds_before(c, p);
      first_group[c + 1] = first_group[c] + firsts;
    }
    if constexpr (groups) {
      counts_ = args_.make_counts(first_group.back());
      for_chunks([&](int64_t chunk) { chunk == 0 ? number<true>(0, 0) : number<false>(chunk, first_group[chunk]); });
      look_up_late();
    } else {
      for_chunks([this](int64_t chunk) { mark(chunk); });
    }
  }

 private:
  struct Chain {  // of the blocks that hold a chunk's rows of a partition
    uint32_t first_block, rows;
  };

  // Of kinds_: one a row at most, and for each chunk some that are nobody's; see number().
  static int64_t entries(const Plan& plan) { return groups ? plan.rows + plan.chunks * kBatch : 0; }

  template <typename F>
  void for_chunks(F&& f) {
    at::parallel_for(0, plan_.chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) f(chunk);
    });
  }

  char* block(int64_t index) const { return blocks_ + index * kBlockBytes; }
  // Where answers lie in the place of their rows: at a different part of each block, or they would compete for few sets of
  // the caches.
  char* answers(int64_t index) const {
    constexpr size_t kPlaces = kBlockBytes / kAnswerBytes;
    return block(index) + index % kPlaces * kAnswerBytes;
  }
  int64_t block_of(const char* address) const { return (address - blocks_) / static_cast<int64_t>(kBlockBytes); }
  Chain& chain(int64_t chunk, int64_t partition) { return chains_[chunk * plan_.partitions + partition]; }
  uint32_t& kinds_before(int64_t chunk, int64_t partition) { return kinds_before_[chunk * plan_.partitions + partition]; }

  // Step 1. Rows gather in a buffer for each partition and leave it eight cache lines at a time, past the caches. (A line at
  // a time takes half as long again: whether a buffer is full is then a guess that fails once in four rows.)
  void deal(int64_t chunk) {
    struct Cursor {
      char* to;
      uint32_t rows = 0;
    };
    auto* const buffers = static_cast<Row*>(workspace(plan_.partitions * kBuffer * sizeof(Row), kBuffers));
    std::vector<Cursor> cursors(plan_.partitions);
    auto unused = static_cast<uint32_t>(plan_.first_block(chunk));
    for (int64_t p = 0; p < plan_.partitions; ++p) {
      chain(chunk, p).first_block = unused;
      cursors[p].to = block(unused++);
    }
    // copies, for all the compiler knows a store might change the originals
    const Codes codes = args_.codes;
    const Plan plan = plan_;
    const HashSeed seed = hash_seed();
    uint16_t* const partition_of = partition_of_;
    const int64_t end = plan.begin(chunk + 1), words = Row::words_of(codes);
    alignas(64) uint64_t hash[kBatch];
    for (int64_t i = plan.begin(chunk); i < end; i += kBatch) {
      const int64_t rows = std::min(kBatch, end - i), ahead = std::min(kBatch, end - i - rows);
      for (int64_t j = 0; j < rows; ++j) hash[j] = hash_code(codes.data + (i + j) * words, words, seed);
      for (int64_t j = 0; j < rows; ++j) partition_of[i + j] = static_cast<uint16_t>(plan.partition(hash[j]));
      for (int64_t j = 0; j < rows; ++j) {
        __builtin_prefetch(codes.data + (i + j + ahead) * words);  // or the memory rests until they are hashed
        const int64_t p = partition_of[i + j];
        Cursor& cursor = cursors[p];
        Row* const buffer = buffers + p * kBuffer;
        buffer[cursor.rows++ % kBuffer] = Row::of(codes, i + j, hash[j]);
        if (cursor.rows % kBuffer == 0) {
          stream(cursor.to, buffer, kBuffer * sizeof(Row));
          cursor.to += kBuffer * sizeof(Row);
          if (cursor.rows % kBlock == 0) {
            next_[block_of(cursor.to - 1)] = unused;
            cursor.to = block(unused++);
          }
        }
      }
    }
    for (int64_t p = 0; p < plan_.partitions; ++p) {
      std::memcpy(cursors[p].to, buffers + p * kBuffer, cursors[p].rows % kBuffer * sizeof(Row));
      chain(chunk, p).rows = cursors[p].rows;
    }
    stream_fence();
  }

  // Step 2. The largest partitions first: they may hold half of all rows.
  void find_kinds() {
    std::vector<int64_t> size(plan_.partitions), order(plan_.partitions);
    for (int64_t p = 0; p < plan_.partitions; ++p) {
      for (int64_t c = 0; c < plan_.chunks; ++c) size[p] += chain(c, p).rows;
      partition_begin_[p + 1] = partition_begin_[p] + size[p];
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return size[a] > size[b]; });
    std::atomic<int64_t> taken{0};
    for_chunks([&](int64_t) {
      Table table(args_.codes);
      for (int64_t i; (i = taken++) < plan_.partitions;) find_kinds(order[i], size[order[i]], table);
    });
  }

  // Open addressing over the kinds of one partition. A slot holds a kind's number + 1 in as many bits as slots are counted
  // with, and bits of the hash above them: rows are compared where those agree.
  //
  // At most half full, and a sixth as a rule: at a third, the second look takes a fifth longer.
  class Table {
   public:
    explicit Table(const Codes& codes) : codes_(codes) {}

    // For a partition of `rows` rows: as large as the last one needed, since partitions are alike.
    void clear(int64_t rows) {
      const int64_t expected = std::min(rows, count_ + count_ / 8);
      count_ = 0;
      resize(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(6 * expected, 2 * kBlock))));
    }

    void reserve(uint32_t more) {
      if (count_ + more > capacity_) grow_kinds(count_ + more);
      if (2 * (count_ + more) <= slots_) return;
      resize(4 * slots_);
      for (uint32_t kind = 0; kind < count_; ++kind) {
        uint64_t i = kinds_[kind].hash & mask_;
        while (table_[i]) i = (i + 1) & mask_;
        table_[i] = tag(kinds_[kind].hash) | (kind + 1);
      }
    }

    void fetch(const Row& row) const { __builtin_prefetch(table_ + (static_cast<uint32_t>(row.hash) & mask_)); }

    // The row's kind; whether it is new.
    std::pair<uint32_t, bool> find_or_add(const Row& row) {
      const uint32_t wanted = tag(row.hash);
      for (auto i = static_cast<uint32_t>(row.hash) & mask_;; i = (i + 1) & mask_) {
        const uint32_t slot = table_[i];
        if (slot == 0) {
          const auto kind = static_cast<uint32_t>(count_++);
          kinds_[kind] = row;
          table_[i] = wanted | (kind + 1);
          return {kind, true};
        }
        if ((slot & ~mask_) == wanted) {
          const uint32_t kind = (slot & mask_) - 1;
          if (row.equals(kinds_[kind], codes_)) return {kind, false};
        }
      }
    }

    uint32_t count() const { return static_cast<uint32_t>(count_); }

   private:
    uint32_t tag(uint64_t hash) const { return static_cast<uint32_t>(hash >> 16) & ~mask_; }

    void resize(uint64_t slots) {
      slots_ = static_cast<int64_t>(slots);
      mask_ = static_cast<uint32_t>(slots - 1);
      table_ = static_cast<uint32_t*>(workspace(slots * sizeof(uint32_t), kTable));
      std::memset(table_, 0, slots * sizeof(uint32_t));
    }

    void grow_kinds(int64_t least) {
      std::swap(kinds_slot_, other_slot_);
      capacity_ = std::max(least, 2 * capacity_);
      auto* const larger = static_cast<Row*>(workspace(capacity_ * sizeof(Row), kinds_slot_));
      std::copy_n(kinds_, count_, larger);
      kinds_ = larger;
    }

    const Codes& codes_;
    uint32_t* table_ = nullptr;
    uint32_t mask_ = 0;
    int64_t slots_ = 0, count_ = 0, capacity_ = 0;
    Row* kinds_ = nullptr;  // close together, where the rows of a partition are not
    int kinds_slot_ = kKinds, other_slot_ = kMoreKinds;
  };

  void find_kinds(int64_t p, int64_t size, Table& table) {
    alignas(64) Answer answer[kBlock];
    uint32_t* const rows_of = kinds_ + partition_begin_[p];
    table.clear(size);
    for (int64_t c = 0; c < plan_.chunks; ++c) {
      const uint32_t early = kinds_before(c, p) = table.count();
      uint32_t left = chain(c, p).rows;
      for (uint32_t b = chain(c, p).first_block; left > 0; b = next_[b]) {
        const uint32_t rows = std::min(left, kBlock);
        const Row* const row = reinterpret_cast<const Row*>(block(b));
        left -= rows;
        if (left > 0) fetch_lines(block(next_[b]), 8);  // the machine fetches the rest once it sees them read
        table.reserve(rows);
        const auto take = [&](uint32_t j) {
          const auto [kind, is_new] = table.find_or_add(row[j]);
          if constexpr (!groups) {
            answer[j] = is_new;
          } else if (is_new) {
            answer[j] = kind | kFirst;
            rows_of[kind] = 1;
          } else {
            answer[j] = kind | (kind < early ? kEarly : 0);
            rows_of[kind]++;
          }
        };
        uint32_t j = 0;
        for (; j + kAhead < rows; ++j) {
          table.fetch(row[j + kAhead]);
          take(j);
        }
        for (; j < rows; ++j) take(j);
        std::memcpy(answers(b), answer, kAnswerBytes);
      }
    }
    kinds_before(plan_.chunks, p) = table.count();
    TORCH_INTERNAL_ASSERT(!groups || table.count() <= kKind);
  }

  // The next answer of a partition's chain.
  Answer next_answer(char*& at) const {
    Answer answer;
    std::memcpy(&answer, at, sizeof(Answer));
    __builtin_prefetch(at + 64);
    at += sizeof(Answer);
    if (reinterpret_cast<uintptr_t>(at) % kAnswerBytes == 0) {
      at = answers(next_[block_of(at - 1)]);
      __builtin_prefetch(at);
    }
    return answer;
  }

  // Step 3, keep alone.
  void mark(int64_t chunk) {
    std::vector<char*> cursors(plan_.partitions);
    for (int64_t p = 0; p < plan_.partitions; ++p) cursors[p] = answers(chain(chunk, p).first_block);
    const int64_t end = plan_.begin(chunk + 1);
    for (int64_t i = plan_.begin(chunk); i < end; ++i) args_.keep[i] = next_answer(cursors[partition_of_[i]]);
  }

  // Step 3. A kind's entry of kinds_ is the number of its rows, until its first row is met: then it becomes the number of its
  // group. A row whose kind appeared in an earlier chunk cannot know whether that has happened: it leaves a note in its place,
  // the entry's index as a negative number, and works on an entry that is nobody's.
  //
  // Without branches and without what compilers make branches of: which rows are the first is anybody's guess, and wrong
  // guesses took as long as all else together.
  template <bool first_chunk>
  void number(int64_t chunk, int64_t next_group) {
    struct Cursor {
      char* at;
      uint32_t begin;  // of the partition's entries
    };
    std::vector<Cursor> cursors(plan_.partitions);
    for (int64_t p = 0; p < plan_.partitions; ++p) {
      cursors[p] = {answers(chain(chunk, p).first_block), static_cast<uint32_t>(partition_begin_[p])};
    }
    const auto nobodys = static_cast<uint32_t>(plan_.rows + chunk * kBatch);  // check_rows() leaves room
    std::fill_n(kinds_ + nobodys, kBatch, 0);
    uint32_t* const kinds = kinds_;
    const uint16_t* const partition_of = partition_of_;
    uint32_t entry[kBatch], answer[kBatch];
    int64_t note[kBatch];
    alignas(64) int64_t group[kBatch];
    StreamedArray<int64_t, kBatch> counts(counts_ + next_group);
    const int64_t end = plan_.begin(chunk + 1);
    for (int64_t i = plan_.begin(chunk); i < end; i += kBatch) {
      const int64_t rows = std::min(kBatch, end - i);
      for (int64_t j = 0; j < rows; ++j) {
        Cursor& cursor = cursors[partition_of[i + j]];
        answer[j] = next_answer(cursor.at);
        const uint32_t own = cursor.begin + (answer[j] & kKind);
        const uint32_t early = first_chunk ? 0 : -(answer[j] / kEarly % 2);  // all bits or none
        entry[j] = select(early, nobodys + static_cast<uint32_t>(j), own);
        if constexpr (!first_chunk) note[j] = ~static_cast<int64_t>(own) & -static_cast<int64_t>(early & 1);
        __builtin_prefetch(kinds + entry[j]);
      }
      bool* const keep = args_.keep + i;
      int64_t* const rows_of = counts.next();
      int64_t firsts = 0;
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t first = answer[j] / kFirst;
        const int64_t value = kinds[entry[j]], number = select(-first, next_group + firsts, value);
        kinds[entry[j]] = static_cast<uint32_t>(number);
        rows_of[firsts] = value;
        firsts += first;
        keep[j] = first;
        group[j] = first_chunk ? number : number | note[j];
      }
      counts.add(firsts);
      next_group += firsts;
      stream(args_.group + i, group, rows * sizeof(int64_t));
    }
    counts.finish();
    stream_fence();
  }

  template <typename T>
  static T select(T mask, T chosen, T other) { return other ^ ((other ^ chosen) & mask); }

  // Listed first, without a guess of which rows left a note, and fetched meanwhile.
  void look_up_late() {
    constexpr int64_t kGrain = 1 << 15;
    at::parallel_for(plan_.begin(1), plan_.rows, kGrain, [&](int64_t begin, int64_t end) {
      int64_t* const group = args_.group;
      int64_t late[kBatch];
      for (int64_t i = begin; i < end; i += kBatch) {
        const int64_t rows = std::min(kBatch, end - i);
        int64_t n = 0;
        for (int64_t j = i; j < i + rows; ++j) {
          late[n] = j;
          n += group[j] < 0;
          __builtin_prefetch(kinds_ + (~group[j] & group[j] >> 63));
        }
        for (int64_t k = 0; k < n; ++k) group[late[k]] = kinds_[~group[late[k]]];
      }
    });
  }

  const FirstOccurrence& args_;
  const Plan& plan_;
  char* const blocks_;            // [blocks, kBlock] Rows; then their answers
  uint32_t* const kinds_;         // [entries], those of partition p from partition_begin_[p]; see number()
  uint16_t* const partition_of_;  // [rows]
  std::vector<uint32_t> next_;    // [blocks], of a chain
  std::vector<Chain> chains_;     // [chunks, partitions]
  std::vector<int64_t> partition_begin_;  // [partitions + 1], in rows
  std::vector<uint32_t> kinds_before_;    // [chunks + 1, partitions]: kinds that appeared in earlier chunks
  int64_t* counts_ = nullptr;
};

// ---------------------------------------------------------------- the table

template <typename F>
auto dispatch(const FirstOccurrence& args, F&& f) {
  const auto with = [&]<typename Row>(Row*) {
    return args.group ? f.template operator()<Run<Row, true>>() : f.template operator()<Run<Row, false>>();
  };
  switch (args.codes.words) {
    case 1: return with(static_cast<Whole<1>*>(nullptr));
    case 2: return with(static_cast<Whole<2>*>(nullptr));
    case 3: return with(static_cast<Whole<3>*>(nullptr));
    case 4: return with(static_cast<Whole<4>*>(nullptr));
    default: return with(static_cast<Reference*>(nullptr));
  }
}

size_t scratch_bytes(const FirstOccurrence& args) {
  const Plan plan(args.codes.rows);
  return dispatch(args, [&]<typename R>() { return R::scratch_bytes(plan); });
}

void run(const FirstOccurrence& args, void* scratch) {
  const Plan plan(args.codes.rows);
  dispatch(args, [&]<typename R>() { R(args, plan, scratch)(); });
}

}  // namespace

extern const FirstOccurrenceKernels first_occurrence{scratch_bytes, run};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
