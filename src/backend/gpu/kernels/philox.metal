// Philox4x32-10 (Salmon et al., 2011): random numbers from a counter and a key.

inline uint4 philox(uint4 counter, uint2 key) {
    for (uint round = 0; round < 10; round++) {
        uint high_0 = mulhi(0xD2511F53u, counter.x);
        uint low_0 = 0xD2511F53u * counter.x;
        uint high_1 = mulhi(0xCD9E8D57u, counter.z);
        uint low_1 = 0xCD9E8D57u * counter.z;
        counter = uint4(high_1 ^ counter.y ^ key.x, low_1, high_0 ^ counter.w ^ key.y, low_0);
        key = uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
    }
    return counter;
}

