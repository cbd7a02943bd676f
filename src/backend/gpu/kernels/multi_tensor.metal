// Processes many tensors in one launch (multi-tensor apply). A table lists the tensors; each threadgroup of 256 threads
// processes a block of 1024 elements of one tensor. All tensors of one role are in one buffer.

#define BLOCK 1024

struct Entry {
    uint first_block;
    uint count;       // elements
    uint at[4];       // offset of each role's tensor, in elements
};

// Returns the index of the tensor that contains a block.
inline uint entry_of(device const Entry* entries, uint tensors, uint block) {
    uint low = 0;
    uint high = tensors;
    while (low + 1 < high) {
        uint middle = (low + high) / 2;
        if (entries[middle].first_block <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
