# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The frame path.  Stations, in the order in which the functions stand below.

TAP -> slave                                  slave -> TAP
1. take_batch       frames from the TAP       1. forward_in      packets from one slave
2. choose_slaves    by the table              2. for_the_bond?   drop what the mode forbids
3. deliver          one sendmmsg a slave      3. divert          LACP, ARP and ND to control
4. what did not go: backlog, fail_over,       4. to_tap          VLAN tag back in, write
   or a counted drop

One worker thread serves both directions in batches and sleeps in epoll.  It reads the
table once per turn of its loop, so no batch ever sees two policies.  The watch, a second
thread, asks the kernel for carriers: it may wait for locks, the worker may not.
`_send.pxd` holds the classes of errors, `_state.pxd` says who may write what.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strncpy

from ubond._balance cimport (
    FREE, LOAD_PORTS, LOAD_SLOTS, fp_loads, is_balanced, is_balanced_to_all, loads_begin, loads_choose,
    loads_count_anew, loads_rebalance, loads_release,
)
from ubond._evidence cimport SEEN_ANY, SEEN_ANSWER, SEEN_OWN, SEEN_REPLY, see
from ubond._frame cimport KIND_ARP, KIND_ND, KIND_SLOW, is_igmp, is_membership_report, is_unicast_to, kind_of
from ubond._hash cimport xmit_hash
from ubond._segment cimport HEADERS_MAX, cut_one, fp_cut, is_tunnel_gso, plan_cut
from ubond._send cimport (
    ALIVE, BUSY, DEAD, SENT, ask_watch, backlog_add, flags_prove_death, found_alive, found_dead, send_plain, send_run,
)
from ubond._state cimport *
from ubond._sys cimport *
from ubond._vnet cimport ETH_LEN, VNET_LEN, vnet_is_gso, vnet_put_tag_back

cdef enum:
    NOBODY = 255
    TAKEN = 254                 # no slave either: control has the frame
    EVENTS = 32
    TAP_EVENT = 1000            # epoll data: TAP_EVENT + i is the i-th TAP queue, below are ports
    KICK_EVENT = 2000
    TIMER_EVENT = 2001
    RETRY_NS = 100 * 1000       # how soon a full ring is tried again
    GIVE_UP_NS = 2 * MS         # how long without any progress
    HOLD_NS = 1000 * MS         # how long frames wait for a MAC to move
    CHECK_NS = 10 * MS          # how often reception may ask about the active slave
    DRAIN_BATCHES = 16          # what arrived under the old table is received under it, up to here
    BUCKET_SIZE = 64            # diverted frames of one kind and slave at once ...
    BUCKET_NS = 4 * MS          # ... and one more each 4 ms


# ── TAP -> slave ─────────────────────────────────────────────────────────────────────

cdef int take_batch(fp_worker* w, int tap) noexcept nogil:
    """1. Read frames from one TAP queue until it is empty or the batch is full; return how many.

    A batch is as full as the last one was, and twice that if it fills up: a single frame is
    sent before the TAP is asked for a second one that is not there.
    """
    cdef uint32_t used = 0, wanted = w.tx_burst
    cdef ssize_t n
    w.n_out = 0
    while w.n_out < wanted and used < BATCH_BYTES:
        n = fp_read(w.tap[tap], w.arena + used, FRAME_MAX)
        if n < 0:
            if errno == EBADFD or errno == EBADF:
                tell(w.shared, NEWS_TAP_GONE, 0, NOBODY, 0)
            break
        if n < VNET_LEN + ETH_LEN:
            w.runt += 1
            continue
        w.out[w.n_out] = w.arena + used
        w.out_length[w.n_out] = <uint32_t>n
        w.n_out += 1
        w.tap_bytes += n - VNET_LEN
        used += (<uint32_t>n + 63) & ~63u       # each packet begins on a cache line of its own
    w.tx_burst = min(BATCH, 2 * wanted) if w.n_out == wanted else max(1, w.n_out)
    w.tap_frames += w.n_out
    return w.n_out


cdef inline fp_port* port_of(fp_worker* w, int slave) noexcept nogil:
    return &w.port[w.table.port[slave]]


cdef inline bint usable(fp_worker* w, int slave) noexcept nogil:
    return (w.table.can_transmit & ~w.dead) >> slave & 1


cdef inline int next_usable(fp_worker* w, uint32_t start) noexcept nogil:
    """The first slave from `start` on, wrapping, that can transmit, or NOBODY."""
    cdef uint32_t i, slave
    for i in range(w.table.n):
        slave = (start + i) % w.table.n
        if usable(w, slave):
            return slave
    return NOBODY


cdef inline int round_robin(fp_worker* w) noexcept nogil:
    """The slave whose turn it is.  bonding.rst, balance-rr: the counter grows before use, so
    the first frame leaves on the second slave; a slave that is down leaves its turn to the next."""
    cdef uint32_t n = w.table.packets_per_slave
    cdef uint32_t id
    if n == 0:
        w.random = w.random * 6364136223846793005ULL + 1442695040888963407ULL
        id = <uint32_t>(w.random >> 33)
    else:
        id = next_u32(&w.shared.turn)
        if n > 1:
            id = id / n
    return next_usable(w, id % w.table.n)


cdef inline int in_turn(fp_worker* w, const uint8_t* packet, uint32_t length) noexcept nogil:
    """The slave for a frame in balance-rr: IGMP stays on the current one."""
    if is_igmp(packet + VNET_LEN, length - VNET_LEN):
        return w.active if w.active >= 0 and usable(w, w.active) else next_usable(w, 0)
    return round_robin(w) if w.table.n else NOBODY


cdef inline int by_hash(fp_worker* w, const uint8_t* packet, uint32_t length) noexcept nogil:
    """The slave that a frame's hash says, among those that can transmit, in enslave order."""
    if w.n_able == 0:
        return NOBODY
    return w.able[xmit_hash(packet + VNET_LEN, length - VNET_LEN, w.table.policy) % w.n_able]


cdef inline int by_load(fp_worker* w, const uint8_t* packet, uint32_t length, uint32_t cost) noexcept nogil:
    """The slave for a frame in balance-tlb and -alb: the active one, or whom its slot or its hash says.

    `cost`: how many bytes it adds to what is counted, 0 for one that has waited.
    """
    cdef int port
    cdef bint balanced
    cdef uint32_t hash = 0
    if w.table.adaptive:
        balanced = is_balanced_to_all(packet + VNET_LEN, length - VNET_LEN, &hash)
    else:
        balanced = is_balanced(packet + VNET_LEN, length - VNET_LEN)
    if not balanced:
        if w.table.adaptive and cost and divert_arp(w, packet + VNET_LEN, length - VNET_LEN):
            return TAKEN
        if w.table.dynamic:
            w.loads.unbalanced += cost
        return w.active if w.active >= 0 else NOBODY
    if not w.table.dynamic:
        return by_hash(w, packet, length)
    if not w.table.adaptive:
        hash = xmit_hash(packet + VNET_LEN, length - VNET_LEN, w.table.policy)
    port = loads_choose(&w.loads, hash, w.n_able, w.able_port, w.able_speed, cost)
    return NOBODY if port == FREE else w.slave_of[port]


cdef inline int active_port(fp_worker* w) noexcept nogil:
    return w.table.port[w.active] if w.active >= 0 else -1


cdef inline void put_source(fp_worker* w, int slave, uint8_t* packet) noexcept nogil:
    """Where all send, each slave but the active one puts its own MAC in: the switch knows the bond's at one port."""
    if slave < TAKEN and slave != w.active:
        memcpy(packet + VNET_LEN + 6, w.table.mac[slave], 6)


cdef void put_source_again(fp_worker* w, int slave, uint8_t* packet) noexcept nogil:
    """The same for a frame that waited for another slave: on the active one what that had put in goes out again."""
    cdef uint32_t i
    if slave != w.active:
        put_source(w, slave, packet)
        return
    for i in range(w.table.n):
        if is_unicast_to(packet + VNET_LEN + 6, w.table.mac[i]):
            memcpy(packet + VNET_LEN + 6, w.table.address, 6)
            return


cdef void choose_by_load(fp_worker* w) noexcept nogil:
    """2 in balance-tlb and balance-alb."""
    cdef uint32_t i
    if w.table.dynamic:
        loads_rebalance(&w.loads, w.table.rebalance, active_port(w), fp_now())
    for i in range(w.n_out):
        w.to[i] = by_load(w, w.out[i], w.out_length[i], w.out_length[i] - VNET_LEN)
        put_source(w, w.to[i], w.out[i])


cdef inline bint selects(fp_worker* w) noexcept nogil:
    """Whether the mode has an active slave that another can stand in for."""
    return w.table.spread == SINGLE or w.table.spread == LOAD


cdef inline int assigned(fp_worker* w, int tap) noexcept nogil:
    """The slave whose `queue_id` is this TAP queue, if it can transmit, or NOBODY."""
    cdef int slave
    if w.tap_queue[tap] < 256 and w.table.queue_slave[w.tap_queue[tap]]:
        slave = w.table.queue_slave[w.tap_queue[tap]] - 1
        if usable(w, slave):
            return slave
    return NOBODY


cdef void choose_slaves(fp_worker* w, int tap) noexcept nogil:
    """2. Put a slave beside each frame of the batch.  bonding.rst, queue_id: not where a hash chooses."""
    cdef uint32_t i
    cdef int one
    if w.table.spread == HASH:
        for i in range(w.n_out):
            w.to[i] = by_hash(w, w.out[i], w.out_length[i])
        return
    if w.table.spread == LOAD:
        choose_by_load(w)
        return
    one = assigned(w, tap)
    if one == NOBODY and w.table.spread == ROUND_ROBIN:
        for i in range(w.n_out):
            w.to[i] = in_turn(w, w.out[i], w.out_length[i])
        return
    if one == NOBODY and w.active >= 0:
        one = w.active
    memset(w.to, one, w.n_out)


cdef void deliver(fp_worker* w) noexcept nogil:
    """3. Send the batch: what goes to one slave in one call, in order."""
    cdef uint64_t still = 0
    cdef uint32_t i, n
    cdef int slave
    for i in range(w.n_out):
        if w.to[i] == NOBODY:
            w.no_slave += 1
        elif w.to[i] != TAKEN:
            still |= 1ULL << w.to[i]
    slave = 0
    while still:
        if still & 1:
            n = 0
            for i in range(w.n_out):
                if w.to[i] == slave:
                    w.tx_part[n].iov_base = w.out[i]
                    w.tx_part[n].iov_len = w.out_length[i]
                    n += 1
            send_or_keep(w, slave, n)
        still >>= 1
        slave += 1


cdef void deliver_copies(fp_worker* w) noexcept nogil:
    """2 and 3 in broadcast.  The batch once on every slave that can transmit: the same bytes, a call each.

    Lost are frames of which no slave took a copy.
    """
    cdef uint64_t able = w.table.can_transmit & ~w.dead
    cdef bint alone = w.n_able == 1
    cdef uint32_t i, reached = 0
    cdef int slave
    for i in range(w.n_out):
        w.tx_part[i].iov_base = w.out[i]
        w.tx_part[i].iov_len = w.out_length[i]
    for slave in range(<int>w.table.n):
        if able >> slave & 1:
            reached = max(reached, send_copies(w, slave, not alone))
    w.no_slave += w.n_out - reached


cdef uint32_t send_copies(fp_worker* w, int slave, bint copied) noexcept nogil:
    """Send the whole of `tx` on one slave; return how many frames from the first on are in its hands.

    A busy slave keeps what it could not send yet; the others do not wait for it.
    """
    cdef fp_port* p = port_of(w, slave)
    cdef uint32_t sent = 0
    cdef int end
    if p.backlog.waits == IDLE:
        end = send_run(w, p, w.tx, w.n_out, &sent)
        if end == SENT:
            return w.n_out
        if end == DEAD:
            p.count.tx_copy_dead += w.n_out - sent
            fail_over(w, slave)     # of its backlog, which is empty
            return sent if w.table.takeover else w.n_out
        begin_waiting(w, p, end)
    keep(w, p, sent, w.n_out, copied)
    return w.n_out


cdef void send_or_keep(fp_worker* w, int slave, uint32_t n) noexcept nogil:
    """Send the first `n` of `tx` on a slave, behind what already waits there.

    A dead link passes them on, including the frame that found it out; a busy one keeps them.
    """
    cdef fp_port* p = port_of(w, slave)
    cdef uint32_t sent = 0
    cdef int end = BUSY
    cdef bint waited = p.backlog.waits != IDLE
    if not waited:
        end = send_run(w, p, w.tx, n, &sent)
        if end == SENT:
            return
    keep(w, p, sent, n, False)
    if waited:
        return
    begin_waiting(w, p, end)
    if end == DEAD:
        fail_over(w, slave)


# ── 4. what did not go ───────────────────────────────────────────────────────────────

cdef inline void keep(fp_worker* w, fp_port* p, uint32_t first, uint32_t end, bint copied) noexcept nogil:
    """Keep `tx[first:end]` behind what waits for a slave; for what there is no room it is congested."""
    cdef uint32_t i
    for i in range(first, end):
        if not backlog_add(p, <uint8_t*>w.tx_part[i].iov_base, <uint32_t>w.tx_part[i].iov_len, copied):
            p.count.tx_congested += 1


cdef inline void begin_waiting(fp_worker* w, fp_port* p, int end) noexcept nogil:
    """A slave did not take a frame.  BUSY: ask whether its link is there, and try again soon."""
    p.backlog.waits = LINK
    p.backlog.since = fp_now()
    if end == BUSY:
        ask_watch(w, p)
        arm_retry(w)


# ── 4. what did not go ───────────────────────────────────────────────────────────────

cdef inline void arm_retry(fp_worker* w) noexcept nogil:
    if not w.timer_armed:
        w.timer_armed = True
        fp_arm(w.timer, RETRY_NS)


cdef void find_able(fp_worker* w) noexcept nogil:
    """List the slaves that can transmit, in enslave order, after the table or what is dead changed."""
    cdef uint32_t slave
    cdef uint64_t ports = 0
    w.n_able = 0
    for slave in range(w.table.n):
        if usable(w, slave):
            w.able[w.n_able] = slave
            w.able_port[w.n_able] = w.table.port[slave]
            w.able_speed[w.n_able] = w.table.speed[slave]
            w.slave_of[w.table.port[slave]] = slave
            ports |= 1ULL << w.table.port[slave]
            w.n_able += 1
    if w.table.spread == LOAD and loads_release(&w.loads, ports):
        loads_count_anew(&w.loads, w.table.rebalance, active_port(w))      # a newcomer gets its share at once
        w.loads.at = fp_now()


cdef void fail_over(fp_worker* w, int slave) noexcept nogil:
    """A slave's link is dead: tell control, make the next of the succession provisionally
    active, and pass on what waits.  It stays so until the next table."""
    cdef fp_port* p = port_of(w, slave)
    cdef bint known = w.dead >> slave & 1
    cdef bint first
    if not w.table.takeover:            # as the driver: lost until a monitor notices
        drop_backlog(p, &p.count.tx_link_down)
        return
    w.dead |= 1ULL << slave
    find_able(w)
    first = not known and is_first_to_know(w, p)
    if selects(w) and slave == w.active and w.table.hold:
        if not known:
            if first:
                tell(w.shared, NEWS_DEAD, w.table.port[slave], NOBODY, 0)
            p.backlog.waits = MOVE
            p.backlog.since = fp_now()
            arm_retry(w)
            return
    elif not known:
        stand_in(w, slave, first)
    redirect(w, p, slave + 1)


cdef bint is_first_to_know(fp_worker* w, fp_port* p) noexcept nogil:
    """Have the other workers follow; False if one of them has found this out before, under this table."""
    cdef int i
    if not raise_u64(&p.link.dead_under, w.table.generation):
        return False
    for i in range(w.shared.n_workers):
        if w.shared.worker[i] != w:
            fp_kick(w.shared.worker[i].kick)
    return True


cdef void stand_in(fp_worker* w, int slave, bint first) noexcept nogil:
    """Replace the active slave if it is the dead one, and tell control if no other worker has."""
    cdef uint32_t i
    cdef int next = NOBODY
    if selects(w) and slave == w.active:
        for i in range(w.table.n_succession):
            if not w.dead >> w.table.succession[i] & 1:
                next = w.table.succession[i]
                break
        if next != NOBODY:
            w.taking = next
            receive_what_came(w)
            w.taking = -1
            w.active = next
            w.provisional = True
            port_of(w, next).first_tx = 0
            store_int(&w.stand_in, w.table.port[next])
    if first:
        tell(w.shared, NEWS_DEAD, w.table.port[slave], NOBODY if next == NOBODY else w.table.port[next], 0)


cdef inline int heir(fp_worker* w, const uint8_t* packet, uint32_t length, uint32_t start) noexcept nogil:
    """Who gets a frame that waited for a slave, or NOBODY: whom the mode has for it without that one."""
    cdef int next
    if w.table.spread == SINGLE:
        return w.active if w.active >= 0 and not w.dead >> w.active & 1 else NOBODY
    if w.table.spread == HASH:
        return by_hash(w, packet, length)
    if w.table.spread == LOAD:
        next = by_load(w, packet, length, 0)
        return NOBODY if next == NOBODY or w.dead >> next & 1 else next
    return next_usable(w, start)


cdef void redirect(fp_worker* w, fp_port* p, uint32_t start) noexcept nogil:
    """Give the frames that wait for one slave to others, in order; without any they are lost.

    `start`: where the slaves that can transmit are looked through from, if the mode does not say whose
    turn it is.  Of what broadcast has given to others too nothing is passed on.
    """
    cdef fp_backlog took = p.backlog    # whole: what follows may lead to frames that wait here anew
    cdef uint8_t to[BATCH]
    cdef uint32_t i, n
    cdef int slave
    clear_backlog(p)
    if took.n == 0:
        return
    p.backlog.bytes = NULL
    for i in range(took.n):
        if took.copied >> i & 1:
            to[i] = NOBODY
            p.count.tx_copy_dead += 1
            w.no_slave += w.n_able == 0     # the last one: whoever had a copy is dead too
        else:
            to[i] = heir(w, took.bytes + took.offset[i], took.length[i], start)
            w.no_slave += to[i] == NOBODY
            if w.table.spread == LOAD and to[i] != NOBODY:
                put_source_again(w, to[i], took.bytes + took.offset[i])
    for slave in range(<int>w.table.n):
        n = 0
        for i in range(took.n):
            if to[i] == slave:
                w.tx_part[n].iov_base = took.bytes + took.offset[i]
                w.tx_part[n].iov_len = took.length[i]
                n += 1
        if n:
            send_or_keep(w, slave, n)
    if p.backlog.bytes is NULL:
        p.backlog.bytes = took.bytes
    else:
        unmap_pages(took.bytes, ARENA)


cdef void drop_backlog(fp_port* p, uint64_t* counter) noexcept nogil:
    counter[0] += p.backlog.n
    clear_backlog(p)


cdef inline void clear_backlog(fp_port* p) noexcept nogil:
    p.backlog.waits = IDLE
    p.backlog.n = p.backlog.used = 0
    p.backlog.copied = 0


cdef void serve_backlog(fp_worker* w, int slave) noexcept nogil:
    """Try again what waits for a slave: retry, the ordinary path for GSO, at last a counted drop."""
    cdef fp_port* p = port_of(w, slave)
    cdef fp_backlog* b = &p.backlog
    cdef uint32_t sent = 0, i
    cdef int end = BUSY
    cdef int64_t now = fp_now()
    if b.waits == MOVE:
        if now - b.since > HOLD_NS:
            drop_backlog(p, &p.count.tx_held_too_long)
            return
        arm_retry(w)
        return
    if found_dead(p):
        fail_over(w, slave)
        return
    for i in range(b.n):
        w.tx_part[i].iov_base = b.bytes + b.offset[i]
        w.tx_part[i].iov_len = b.length[i]
    if found_alive(p):      # after the last refusal the carrier was there: the ring is full ...
        if now - b.since > GIVE_UP_NS:
            drop_backlog(p, &p.count.tx_congested)
            return
        if vnet_is_gso(<uint8_t*>w.tx_part[0].iov_base) and send_plain(p, w.tx):
            sent = 1        # ... or the bypass cannot segment what this slave cannot
    end = send_run(w, p, w.tx, b.n, &sent)
    if end == SENT:
        clear_backlog(p)
        return
    if sent:
        b.since = now
        b.n -= sent
        b.copied >>= sent
        for i in range(b.n):
            b.offset[i] = b.offset[i + sent]
            b.length[i] = b.length[i + sent]
    if end == DEAD:
        fail_over(w, slave)
    else:
        ask_watch(w, p)
        arm_retry(w)


cdef void serve_backlogs(fp_worker* w) noexcept nogil:
    cdef uint32_t slave
    for slave in range(w.table.n):
        if port_of(w, slave).backlog.waits != IDLE:
            serve_backlog(w, slave)


cdef void take_answers(fp_worker* w) noexcept nogil:
    """The watch has answered, or another worker knows: a dead slave is replaced even when nothing waits for it."""
    cdef uint32_t slave
    cdef fp_port* p
    for slave in range(w.table.n):
        p = port_of(w, slave)
        if not w.dead >> slave & 1 and (found_dead(p) or load_u64(&p.link.dead_under) == w.table.generation):
            fail_over(w, slave)


# ── slave -> TAP ─────────────────────────────────────────────────────────────────────

cdef int forward_in(fp_worker* w, int slave) noexcept nogil:
    """1. Receive a batch from one slave and give the bond what is for it; return how many came."""
    cdef fp_port* p = port_of(w, slave)
    cdef int i, n
    cdef uint32_t length, longest = 0
    cdef uint8_t* packet
    cdef bint receives = for_the_bond(w, slave)
    for i in range(w.rx_burst):
        w.rx[i].msg_hdr.msg_controllen = FP_CONTROL
    n = recvmmsg(p.fd, w.rx, w.rx_burst, MSG_DONTWAIT, NULL)
    if n <= 0:
        if n < 0 and errno != EAGAIN and errno != EINTR:
            link_error(w, slave)
        return 0
    p.last_rx = fp_now()
    for i in range(n):
        length = w.rx[i].msg_len
        packet = <uint8_t*>w.rx_part[2 * i].iov_base
        if length > longest:
            longest = length
        if length < VNET_LEN + ETH_LEN or w.rx[i].msg_hdr.msg_flags & MSG_TRUNC:
            p.count.rx_truncated += 1
            continue
        if w.table.watch.on:
            see(p.stamp, &w.table.watch, slave, packet + VNET_LEN, length - VNET_LEN, p.last_rx)
        if w.table.divert and divert(w, slave, packet + VNET_LEN, length - VNET_LEN):
            pass
        elif takes(w, slave, receives, packet) if w.table.adaptive else receives:
            to_tap(w, p, i, length)
        elif not (w.table.takeover and is_unicast_to(packet + VNET_LEN, w.table.address)):
            p.count.rx_ignored += 1
        elif slave == w.taking:     # unless a switch floods, it came nowhere else
            to_tap(w, p, i, length)
        else:
            p.count.rx_ignored += 1
            doubt_active(w)
    # Large packets, few at a time: what was received is still in cache when it is written.
    w.rx_burst = BATCH if longest * BATCH <= BATCH_BYTES else max(1, BATCH_BYTES / longest)
    return n


cdef inline bint for_the_bond(fp_worker* w, int slave) noexcept nogil:
    """2. Whether what arrives on a slave goes to the bond (the mode's receive rule)."""
    if w.provisional and (slave == w.active or slave == w.table.active):
        return slave == w.active
    return w.table.receives >> slave & 1


cdef bint takes(fp_worker* w, int slave, bint receives, uint8_t* packet) noexcept nogil:
    """2 in balance-alb, where each slave is sent to under its own MAC; the bond is handed all that under its own.

    What a switch floods comes to other slaves too: it is whose MAC it names that takes it, and the
    active one for those that cannot.
    """
    cdef uint8_t* dst = packet + VNET_LEN
    cdef uint32_t i
    if dst[0] & 1 or is_unicast_to(dst, w.table.address):
        return receives
    if is_unicast_to(dst, w.table.mac[slave]):
        memcpy(dst, w.table.address, 6)
        return True
    if not receives:
        return False
    for i in range(w.table.n):
        if is_unicast_to(dst, w.table.mac[i]):
            if usable(w, i) and not w.table.receives >> i & 1:
                return False
            memcpy(dst, w.table.address, 6)
            return True
    return True     # a VLAN's own MAC, a guest's


cdef void doubt_active(fp_worker* w) noexcept nogil:
    """A frame for the bond came to a backup: perhaps the switch knows more than we do."""
    cdef int64_t now = fp_now()
    if w.active >= 0 and now - w.checked > CHECK_NS:
        w.checked = now
        ask_watch(w, port_of(w, w.active))


cdef void link_error(fp_worker* w, int slave) noexcept nogil:
    """A socket reports an error: read it away, it repeats until then, and ask whether the link lives."""
    cdef fp_port* p = port_of(w, slave)
    fp_take_socket_error(p.fd)
    if not w.dead >> slave & 1:
        if flags_prove_death(w, p):
            fail_over(w, slave)
        else:
            ask_watch(w, p)


cdef bint divert(fp_worker* w, int slave, const uint8_t* frame, uint32_t length) noexcept nogil:
    """3. Hand control a copy of what it asked for, as much as it will read; True if the bond must not see it."""
    cdef int kind = kind_of(frame, length) & w.table.divert
    cdef fp_port* p = port_of(w, slave)
    cdef fp_bucket* bucket
    if kind == 0:
        return False
    bucket = &p.bucket[0 if kind == KIND_SLOW else 1 if kind == KIND_ARP else 2]
    if hand_over(w, bucket, w.table.port[slave], kind, frame, length):
        p.count.diverted += 1
    else:
        p.count.divert_policed += 1
    return kind == KIND_SLOW


cdef bint divert_arp(fp_worker* w, const uint8_t* frame, uint32_t length) noexcept nogil:
    """In balance-alb: let control send an ARP frame of the host's; False if that is more than it will look at."""
    if length > DIVERT_BYTES or kind_of(frame, length) != KIND_ARP:
        return False
    if not hand_over(w, &w.arp, NOBODY, KIND_ARP, frame, length):
        return False
    w.tap_diverted += 1
    return True


cdef bint hand_over(fp_worker* w, fp_bucket* bucket, uint8_t port, int kind, const uint8_t* frame,
                    uint32_t length) noexcept nogil:
    """Put a frame where control finds it, unless the bucket is empty or the ring full."""
    cdef fp_diverted* slot
    cdef uint32_t head = w.divert_head
    cdef int64_t now = fp_now(), more = (now - bucket.filled_at) / BUCKET_NS
    if more > 0:
        bucket.tokens = BUCKET_SIZE if bucket.tokens + more > BUCKET_SIZE else <uint32_t>(bucket.tokens + more)
        bucket.filled_at = now
    if bucket.tokens == 0 or head - load_u32(&w.divert_tail) >= DIVERT_RING:
        return False
    bucket.tokens -= 1
    slot = &w.divert[head % DIVERT_RING]
    slot.at = now
    slot.port = port
    slot.kind = kind
    slot.length = <uint16_t>(length if length < DIVERT_BYTES else DIVERT_BYTES)
    memcpy(slot.bytes, frame, slot.length)
    store_u32(&w.divert_head, head + 1)
    if head == load_u32(&w.divert_tail):
        fp_kick(w.shared.board.eventfd)
    return True


cdef inline void to_tap(fp_worker* w, fp_port* p, int i, uint32_t length) noexcept nogil:
    """4. Write one packet to the TAP, its VLAN tag back in place."""
    cdef iovec* part = &w.rx_part[2 * i]
    cdef uint8_t* packet = <uint8_t*>part.iov_base
    cdef uint16_t tci, tpid
    cdef iovec out[2]
    out[0].iov_base = packet
    out[0].iov_len = length if length < part.iov_len else part.iov_len
    out[1].iov_base = part[1].iov_base
    out[1].iov_len = length - out[0].iov_len
    if fp_stripped_tag(&w.rx[i].msg_hdr, &tci, &tpid):
        out[0].iov_base = vnet_put_tag_back(packet, tci, tpid)
        out[0].iov_len += 4
    if vnet_is_gso(<uint8_t*>out[0].iov_base) and is_tunnel_gso(<uint8_t*>out[0].iov_base, <uint32_t>out[0].iov_len):
        cut_to_tap(w, p, out)
        return
    if fp_write(w.tap[0], out, 2 if out[1].iov_len else 1) >= 0:
        p.count.rx_frames += 1
        p.count.rx_bytes += length - VNET_LEN
    else:
        count_refused(p)


cdef void cut_to_tap(fp_worker* w, fp_port* p, iovec* packet) noexcept nogil:
    """Write a tunnel super-frame as its segments: no header can say to the TAP what it is."""
    cdef fp_cut cut
    cdef uint8_t head[VNET_LEN + HEADERS_MAX]
    cdef iovec out[2]
    cdef uint32_t i, at = 0
    cdef uint8_t* whole = w.arena_in
    cdef uint32_t length = <uint32_t>(packet[0].iov_len + packet[1].iov_len)
    memcpy(whole, packet[0].iov_base, packet[0].iov_len)
    memcpy(whole + packet[0].iov_len, packet[1].iov_base, packet[1].iov_len)
    if not plan_cut(whole, length, &cut):
        p.count.rx_tunnel_refused += 1
        return
    p.count.rx_tunnel_gso += 1
    memset(head, 0, VNET_LEN)
    for i in range(cut.n):
        out[1].iov_len = cut_one(&cut, whole + VNET_LEN, i, head + VNET_LEN, &at)
        out[0].iov_base = head
        out[0].iov_len = VNET_LEN + cut.headers
        out[1].iov_base = whole + VNET_LEN + at
        if fp_write(w.tap[0], out, 2) < 0:
            count_refused(p)
            return
    p.count.rx_frames += 1
    p.count.rx_bytes += length - VNET_LEN


cdef inline void count_refused(fp_port* p) noexcept nogil:
    if errno == EIO:
        p.count.rx_tap_down += 1
    else:
        p.count.rx_tap_refused += 1


cdef void receive_what_came(fp_worker* w) noexcept nogil:
    """Before the receive rule changes: what has arrived until now is treated by the old rule.

    So a frame that a slave had already delivered is not lost to a switch of the active
    slave, and one that came to both is not taken twice.
    """
    cdef uint32_t slave
    for slave in range(w.table.n):
        if <int>slave != w.taking:
            receive_all(w, slave)
    if w.taking >= 0:
        receive_all(w, w.taking)    # last: what the old one has is older


cdef void receive_all(fp_worker* w, int slave) noexcept nogil:
    cdef int batch
    for batch in range(DRAIN_BATCHES):
        if forward_in(w, slave) == 0:
            break


# ── who sends through the bond ───────────────────────────────────────────────────────

cdef inline void remember_source(fp_worker* w, const uint8_t* address) noexcept nogil:
    """Note a source MAC that is not the bond's: a guest behind a bridge, to be announced at failover."""
    cdef uint64_t mac = 0
    cdef uint32_t slot, i
    memcpy(&mac, address, 6)
    if mac == w.last_seen_mac:
        return
    w.last_seen_mac = mac
    if address[0] & 1 or is_unicast_to(address, w.table.address):
        return
    slot = <uint32_t>((mac * 0x9E3779B97F4A7C15ULL) >> 54) % SEEN
    for i in range(8):
        if w.seen_mac[(slot + i) % SEEN] == mac:
            return
        if w.seen_mac[(slot + i) % SEEN] == 0:
            break
    else:
        i = 0       # a full neighbourhood: the newcomer takes the first place
    store_u64(&w.seen_mac[(slot + i) % SEEN], mac)


cdef void tell_report(fp_worker* w) noexcept nogil:
    """Groups are joined or left: have control look, once until it does."""
    if not load_int(&w.reported):
        store_int(&w.reported, 1)
        tell(w.shared, NEWS_REPORT, NOBODY, NOBODY, 0)


cdef inline void look_through(fp_worker* w) noexcept nogil:
    """See in a batch from the TAP who sends it, and whether groups are joined."""
    cdef uint32_t i
    for i in range(w.n_out):
        remember_source(w, w.out[i] + VNET_LEN + 6)
        if is_membership_report(w.out[i] + VNET_LEN, w.out_length[i] - VNET_LEN):
            tell_report(w)


# ── the worker's life ────────────────────────────────────────────────────────────────

cdef bint get_memory(fp_worker* w) noexcept nogil:
    w.arena = <uint8_t*>map_pages(ARENA)
    w.near = <uint8_t*>map_pages(BATCH * NEAR)
    w.far = <uint8_t*>map_pages(BATCH * FRAME_MAX)
    w.arena_in = <uint8_t*>map_pages(NEAR + FRAME_MAX)
    w.divert = <fp_diverted*>map_pages(DIVERT_RING * sizeof(fp_diverted))
    return (w.arena is not NULL and w.near is not NULL and w.far is not NULL and w.arena_in is not NULL
            and w.divert is not NULL)


cdef void give_memory_back(fp_worker* w) noexcept nogil:
    unmap_pages(w.arena, ARENA)
    unmap_pages(w.near, BATCH * NEAR)
    unmap_pages(w.far, BATCH * FRAME_MAX)
    unmap_pages(w.arena_in, NEAR + FRAME_MAX)
    unmap_pages(w.divert, DIVERT_RING * sizeof(fp_diverted))


cdef void furnish(fp_worker* w, fp_shared* s) noexcept nogil:
    """Give a worker that has its memory all that it needs besides a table and a TAP."""
    cdef epoll_event event
    cdef uint32_t i
    w.shared = s
    for i in range(MAX_SLAVES):
        w.port[i].link = &s.link[i]
    w.active = w.stand_in = w.taking = -1
    loads_begin(&w.loads)
    w.rx_burst = BATCH
    w.tx_burst = 1
    w.tap_armed = True
    w.random = <uint64_t>fp_now() ^ <uint64_t>w | 1
    w.epoll = epoll_create1(EPOLL_CLOEXEC)
    w.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    w.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
    for i in range(BATCH):
        w.tx[i].msg_hdr.msg_iov = &w.tx_part[i]
        w.tx[i].msg_hdr.msg_iovlen = 1
        w.rx_part[2 * i].iov_base = w.near + i * NEAR + HEADROOM
        w.rx_part[2 * i].iov_len = NEAR - HEADROOM
        w.rx_part[2 * i + 1].iov_base = w.far + i * FRAME_MAX
        w.rx_part[2 * i + 1].iov_len = FRAME_MAX
        w.rx[i].msg_hdr.msg_iov = &w.rx_part[2 * i]
        w.rx[i].msg_hdr.msg_iovlen = 2
        w.rx[i].msg_hdr.msg_control = &w.control[64 * i]
    event.events = EPOLLIN
    event.data.u64 = KICK_EVENT
    epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.kick, &event)
    event.data.u64 = TIMER_EVENT
    epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.timer, &event)


cdef void tell(fp_shared* s, uint8_t kind, uint8_t port, uint8_t other, uint8_t carrier) noexcept nogil:
    """Leave a note for control."""
    cdef fp_board* b = &s.board
    cdef fp_news* item
    pthread_mutex_lock(&b.lock)
    if b.head - b.tail < NEWS:
        item = &b.item[b.head % NEWS]
        item.at = fp_now()
        item.kind = kind
        item.port = port
        item.other = other
        item.carrier = carrier
        b.head += 1
    else:
        b.lost += 1
    pthread_mutex_unlock(&b.lock)
    fp_kick(b.eventfd)


cdef void follow_table(fp_worker* w) noexcept nogil:
    """Begin to use the newest table: forget what was provisional, settle what waited for it."""
    cdef const fp_table* new = load_table(&w.shared.table)
    cdef const fp_table* old = w.table
    cdef fp_port* p
    cdef uint32_t i
    cdef int slave
    if new.generation == w.seen:
        return
    if old is not NULL and not w.provisional and receives_otherwise(old, new):
        receive_what_came(w)
    w.table = new
    w.dead = 0
    if new.active >= 0 and (w.active < 0 or old is NULL or old.port[w.active] != new.port[new.active]):
        w.port[new.port[new.active]].first_tx = 0
    w.active = new.active
    w.provisional = False
    find_able(w)
    store_int(&w.stand_in, -1)
    for i in range(MAX_SLAVES):
        p = &w.port[i]
        found_dead(p)       # an answer from before the table is old news
        if p.backlog.waits == IDLE:
            continue
        slave = slave_of_port(new, i)
        if slave < 0 or p.backlog.waits == MOVE or not has_a_turn(w, slave):
            redirect(w, p, 0)
    store_u64(&w.seen, new.generation)


cdef inline bint receives_otherwise(const fp_table* old, const fp_table* new) noexcept nogil:
    """Whether a slave of the old table has left, or another receive rule in the new one."""
    cdef uint32_t i
    cdef int slave
    for i in range(old.n):
        slave = slave_of_port(new, old.port[i])
        if slave < 0 or (old.receives >> i ^ new.receives >> slave) & 1:
            return True
    return False


cdef inline int slave_of_port(const fp_table* t, uint32_t port) noexcept nogil:
    cdef uint32_t slave
    for slave in range(t.n):
        if t.port[slave] == port:
            return slave
    return -1


cdef inline bint has_a_turn(fp_worker* w, int slave) noexcept nogil:
    """Whether what waits for this slave may go on waiting: in LOAD its source MAC may be another's now."""
    if w.table.spread == LOAD:
        return False
    return slave == w.active if w.table.spread == SINGLE else usable(w, slave)


cdef inline bint tap_must_wait(fp_worker* w) noexcept nogil:
    """In a single-path mode nothing is taken from the TAP while frames before it wait."""
    cdef uint32_t slave
    if w.table.spread != SINGLE:
        return False
    for slave in range(w.table.n):
        if port_of(w, slave).backlog.waits != IDLE:
            return True
    return False


cdef void arm_tap(fp_worker* w, bint wanted) noexcept nogil:
    cdef epoll_event event
    cdef int i
    if wanted == w.tap_armed:
        return
    w.tap_armed = wanted
    for i in range(w.n_taps):
        event.events = EPOLLIN if wanted else 0
        event.data.u64 = TAP_EVENT + i
        epoll_ctl(w.epoll, EPOLL_CTL_MOD, w.tap[i], &event)


cdef void forward_out(fp_worker* w, int tap) noexcept nogil:
    """One batch from one TAP queue, all stations."""
    if tap_must_wait(w):
        return
    if not take_batch(w, tap):
        return
    look_through(w)
    if w.table.spread == BROADCAST:
        deliver_copies(w)
    else:
        choose_slaves(w, tap)
        deliver(w)


cdef void turn_of_port(fp_worker* w, uint32_t port, uint32_t events) noexcept nogil:
    cdef int slave = slave_of_port(w.table, port)
    if slave < 0:
        return      # released since epoll named it
    if events & EPOLLIN:
        if w.shared.n_workers > 1 and not for_the_bond(w, slave):
            take_answers(w)     # another worker may have made it the active one
        forward_in(w, slave)
    if events & (EPOLLERR | EPOLLHUP):
        link_error(w, slave)


cdef int wait_for_frames(fp_worker* w, epoll_event* events) noexcept nogil:
    """Sleep until there is something to do; with `busy_poll` look again and again for that long first.

    Only while it pays: a wait that was longer is the last that begins awake, until one is shorter again.
    """
    cdef int64_t longest = load_i64(&w.shared.busy_poll), began
    cdef int n = 0
    if longest == 0:
        return epoll_wait(w.epoll, events, EVENTS, -1)
    began = fp_now()
    while w.awake and n == 0:
        n = epoll_wait(w.epoll, events, EVENTS, 0)
        w.awake = fp_now() - began < longest
    if n == 0:
        n = epoll_wait(w.epoll, events, EVENTS, -1)
        w.awake = fp_now() - began < longest
    return n


cdef void work(fp_worker* w) noexcept nogil:
    """Forward until told to stop or to pause."""
    cdef epoll_event events[EVENTS]
    cdef int n, i
    cdef uint64_t what
    while not load_int(&w.shared.stopping) and not load_int(&w.shared.pausing):
        arm_tap(w, not tap_must_wait(w))
        n = wait_for_frames(w, events)
        for i in range(n):
            if events[i].data.u64 == KICK_EVENT:
                fp_drain(w.kick)    # before the table is read: the kick for one that comes after that must stay
        follow_table(w)
        for i in range(n):
            what = events[i].data.u64
            if what == KICK_EVENT:
                take_answers(w)
                serve_backlogs(w)
            elif what == TIMER_EVENT:
                fp_drain(w.timer)
                w.timer_armed = False
                serve_backlogs(w)
            elif what >= TAP_EVENT:
                if events[i].events & EPOLLIN:
                    forward_out(w, <int>(what - TAP_EVENT))
                elif events[i].events & (EPOLLERR | EPOLLHUP):
                    tap_error(w, <int>(what - TAP_EVENT))
            else:
                turn_of_port(w, <uint32_t>what, events[i].events)


cdef void tap_error(fp_worker* w, int tap) noexcept nogil:
    """The bond's device is gone: epoll would report it for ever, so it is not asked again."""
    epoll_ctl(w.epoll, EPOLL_CTL_DEL, w.tap[tap], NULL)
    tell(w.shared, NEWS_TAP_GONE, 0, NOBODY, 0)


# ── the watch ────────────────────────────────────────────────────────────────────────

cdef int read_link(fp_shared* s, fp_link* l) noexcept nogil:
    """Whether a slave has a link: by ethtool, by its PHY, at last by the running flag.

    bonding.rst, use_carrier: 0 asks the PHY first.  An interface that has neither is
    believed its flags, one that is gone has no link.
    """
    cdef int link = fp_mii_link(s.probe, l.index, l.name) if load_int(&s.by_mii) else -1
    if link < 0:
        link = fp_carrier(s.probe, l.index, l.name)
    if link < 0:
        link = fp_mii_link(s.probe, l.index, l.name)
    if link < 0 or (link and load_int(&l.reading) != 1):
        # Some drivers answer from the PHY seconds before the kernel lets a frame through: a rise
        # is believed when the kernel says so too.  A fall is believed at once.
        link = fp_flags(s.probe, l.index, l.name) == (IFF_UP | IFF_RUNNING)
    return link


cdef void look(fp_shared* s, uint32_t port) noexcept nogil:
    """Read one slave's carrier; answer the workers' questions, tell control of a change."""
    cdef fp_link* l = &s.link[port]
    cdef fp_port* p
    cdef uint32_t question[MAX_WORKERS]
    cdef int carrier, i, before = load_int(&l.reading)
    store_int(&l.poked, 0)
    for i in range(s.n_workers):
        question[i] = load_u32(&s.worker[i].port[port].question)
    carrier = read_link(s, l)
    for i in range(s.n_workers):
        p = &s.worker[i].port[port]
        if question[i] != load_u32(&p.answered):
            store_int(&p.answer, carrier)
            store_u32(&p.answered, question[i])
            fp_kick(s.worker[i].kick)
    if load_int(&l.open) and carrier != before and before == load_int(&l.reading):
        store_int(&l.reading, carrier)
        tell(s, NEWS_CARRIER, port, NOBODY, carrier)


cdef inline bint is_asked(fp_shared* s, uint32_t port) noexcept nogil:
    cdef fp_port* p
    cdef int i
    if load_int(&s.link[port].poked):
        return True
    for i in range(s.n_workers):
        p = &s.worker[i].port[port]
        if load_u32(&p.question) != load_u32(&p.answered):
            return True
    return False


cdef inline bint is_as_told(fp_shared* s, fp_link* l) noexcept nogil:
    """Whether whoever has the slave's name now says what control holds for the slave: one call instead of several.

    A name may have become another's a moment ago: so what differs is read by index before it is believed, and a change
    that hides behind another's name is read when the kernel's message about either asks for it.
    """
    cdef int told = load_int(&l.reading)
    return told >= 0 and not load_int(&s.by_mii) and fp_carrier(s.probe, 0, l.name) == told


cdef uint64_t frames_of(fp_shared* s) noexcept nogil:
    """A sum that grows with every frame, whatever became of it."""
    cdef uint64_t found = 0
    cdef const uint64_t* value
    cdef uint32_t port
    cdef int i
    cdef size_t k
    for i in range(s.n_workers):
        found += load_u64(&s.worker[i].tap_frames)
        for port in range(MAX_SLAVES):
            if load_int(&s.link[port].open):
                value = <const uint64_t*>&s.worker[i].port[port].count
                for k in range(sizeof(fp_counters) // sizeof(uint64_t)):
                    found += load_u64(&value[k])
    return found


cdef void tell_of_frames(fp_shared* s) noexcept nogil:
    """Tell control once when frames have come by since it asked."""
    if load_int(&s.frames_asked) and frames_of(s) != load_u64(&s.frames_then):
        store_int(&s.frames_asked, 0)
        tell(s, NEWS_FRAMES, NOBODY, NOBODY, 0)


cdef void tell_of_features(fp_shared* s, uint32_t port) noexcept nogil:
    """Tell control when a slave's features are not those of the last look, or it has been offered what it cannot send.

    That is how another `gso_max_size` shows, which neither a message nor a reading of features tells of.
    """
    cdef fp_link* l = &s.link[port]
    cdef uint64_t before = load_u64(&l.features), now = fp_features(s.probe, l.index, l.name)
    cdef int i
    if not now:
        return
    for i in range(s.n_workers):
        now += load_u64(&s.worker[i].port[port].count.tx_plain)
    if now == before or not load_int(&l.open):
        return
    store_u64(&l.features, now)
    if before:
        tell(s, NEWS_FEATURES, port, NOBODY, 0)


cdef void watch(fp_shared* s) noexcept nogil:
    """Poll every slave's carrier each interval, and at once where a worker asks.

    Besides, tell what control would otherwise have to wake for: frames, groups that nobody reports, and features.
    """
    cdef int64_t interval = 0, next = 0, look_further = 0
    cdef uint64_t groups = 0, groups_now
    cdef uint32_t port
    cdef bint all_of_them
    while not load_int(&s.stopping):
        if fp_sleep(s.watch_kick, next):
            fp_drain(s.watch_kick)
        all_of_them = next != 0 and fp_now() >= next
        for port in range(MAX_SLAVES):
            if load_int(&s.link[port].open):
                if is_asked(s, port) or (all_of_them and not is_as_told(s, &s.link[port])):
                    look(s, port)
        if all_of_them:
            tell_of_frames(s)
            if fp_now() >= look_further:
                look_further = fp_now() + <int64_t>5000 * MS
                for port in range(MAX_SLAVES):
                    if load_int(&s.link[port].open):
                        tell_of_features(s, port)
                groups_now = fp_digest(s.groups)
                if groups_now != groups:
                    tell(s, NEWS_GROUPS, NOBODY, NOBODY, 0)
                groups = groups_now
        if all_of_them or interval != load_i64(&s.interval):
            interval = load_i64(&s.interval)
            next = fp_now() + interval if interval else 0


# ── the Python face ──────────────────────────────────────────────────────────────────

COUNTERS = (
    "tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "rx_ignored", "rx_tap_down", "rx_tap_refused",
    "rx_truncated", "tx_too_long", "tx_too_long_tagged", "tx_refused", "tx_congested", "tx_link_down", "tx_copy_dead",
    "tx_held_too_long", "tx_unknown", "tx_plain", "diverted", "divert_policed", "rx_tunnel_gso",
    "rx_tunnel_refused", "rx_overrun", "rx_left", "tx_control",
)
"""A slave's counters, in the order of `fp_counters`."""

NO_PORT = FREE
CARRIER, DEAD_LINK, TAP_GONE, REPORT = NEWS_CARRIER, NEWS_DEAD, NEWS_TAP_GONE, NEWS_REPORT
FRAMES, GROUPS, FEATURES = NEWS_FRAMES, NEWS_GROUPS, NEWS_FEATURES


cdef class Engine:
    """One bond's workers and watch.  `datapath` is its only caller.

    One thread for each worker enters it in `work(i)`, and one in `watch()`; all other methods belong
    to the control thread.  Descriptors stay the caller's: it closes them, those of a
    removed port only when `passed()` says that no batch can hold them.
    """

    cdef fp_shared shared
    cdef fp_table* retired          # replaced, and perhaps still in use; newest first

    def __cinit__(self, taps, int probe, int workers=1, int groups=-1):
        """`taps`: (descriptor, queue number) of each TAP queue; `probe`: a datagram socket for ioctls;
        `groups`: the list of all devices' groups, -1: none."""
        memset(&self.shared, 0, sizeof(self.shared))
        self.shared.probe, self.shared.groups = probe, groups
        self.shared.board.eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.shared.watch_kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        pthread_mutex_init(&self.shared.board.lock, NULL)
        self.shared.table = <fp_table*>calloc(1, sizeof(fp_table))
        if self.shared.table is NULL:
            raise MemoryError
        self.shared.table.active = -1
        self.shared.table.generation = 1
        if not 0 < workers <= MAX_WORKERS:
            raise ValueError(f"from 1 to {MAX_WORKERS} workers")
        for _ in range(workers):
            self._add_worker()
        for fd, queue in taps:
            self.add_tap(fd, queue)
        for i in range(workers):
            follow_table(self.shared.worker[i])

    cdef _add_worker(self):
        cdef fp_worker* w = <fp_worker*>calloc(1, sizeof(fp_worker))
        if w is NULL:
            raise MemoryError
        if not get_memory(w):
            give_memory_back(w)
            free(w)
            raise MemoryError
        furnish(w, &self.shared)
        self.shared.worker[self.shared.n_workers] = w
        self.shared.n_workers += 1

    def __dealloc__(self):
        cdef int i, k
        cdef fp_worker* w
        cdef fp_table* table
        for i in range(self.shared.n_workers):
            w = self.shared.worker[i]
            for k in range(MAX_SLAVES):
                unmap_pages(w.port[k].backlog.bytes, ARENA)
            give_memory_back(w)
            close(w.epoll)
            close(w.kick)
            close(w.timer)
            free(w)
        while self.retired is not NULL:
            table = self.retired
            self.retired = table.older
            free(table)
        free(self.shared.table)
        close(self.shared.board.eventfd)
        close(self.shared.watch_kick)
        pthread_mutex_destroy(&self.shared.board.lock)

    cdef fp_worker* _worker(self, int i) except NULL:
        if not 0 <= i < self.shared.n_workers:
            raise IndexError(i)
        return self.shared.worker[i]

    cdef _kick_workers(self):
        cdef int i
        for i in range(self.shared.n_workers):
            fp_kick(self.shared.worker[i].kick)

    # ── threads ──

    def work(self, int worker=0):
        """Forward frames until `stop` or `pause`; the calling thread does nothing else."""
        cdef fp_worker* w = self._worker(worker)
        with nogil:
            work(w)

    def watch(self):
        """Poll carriers until `stop`; the calling thread does nothing else."""
        with nogil:
            watch(&self.shared)

    def stop(self):
        """Make all threads return."""
        store_int(&self.shared.stopping, 1)
        self._kick_workers()
        fp_kick(self.shared.watch_kick)

    def pause(self):
        """Make `work` return between two batches: frames wait where they are, until somebody works again."""
        store_int(&self.shared.pausing, 1)
        self._kick_workers()

    def resume(self):
        """`work` may be called again."""
        store_int(&self.shared.pausing, 0)

    # ── control ──

    def add_tap(self, int fd, int queue):
        """Serve one more queue of the TAP: the workers take turns.  A worker writes to its first."""
        cdef epoll_event event
        cdef fp_worker* w = self._worker(queue % self.shared.n_workers)
        if w.n_taps == MAX_QUEUES:
            raise ValueError(f"at most {MAX_QUEUES} queues for one worker")
        w.tap[w.n_taps] = fd
        w.tap_queue[w.n_taps] = queue
        event.events = EPOLLIN if w.tap_armed else 0
        event.data.u64 = TAP_EVENT + w.n_taps
        w.n_taps += 1
        if epoll_ctl(w.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")

    def add_port(self, str name, fds, int plain_fd):
        """Take a slave's sockets, one that receives for each worker; return the port number for `publish`."""
        cdef uint32_t i
        cdef fp_link* l
        cdef int k
        if len(fds) != self.shared.n_workers:
            raise ValueError("one socket for each worker")
        for i in range(MAX_SLAVES):
            l = &self.shared.link[i]
            if not l.open and self.shared.worker[0].port[i].fd == 0:
                break
        else:
            raise ValueError(f"at most {MAX_SLAVES} slaves")
        l.index = fp_index(fds[0])
        l.reading = -1
        store_u64(&l.features, 0)
        l.dead_under = 0
        self._name(l, name)
        for k in range(self.shared.n_workers):
            open_port(&self.shared.worker[k].port[i], fds[k], plain_fd)
        store_int(&l.open, 1)
        return i

    cdef _name(self, fp_link* l, str name):
        cdef bytes raw = name.encode("utf-8", "surrogateescape")
        memset(l.name, 0, 16)
        strncpy(l.name, raw, 15)

    def rename_port(self, int port, str name):
        """The slave's interface has another name now."""
        self._name(&self.shared.link[port], name)

    def listen(self, int port):
        """Begin to receive on a port, once a published table names it."""
        cdef epoll_event event
        cdef fp_worker* w
        event.events = EPOLLIN
        event.data.u64 = port
        for i in range(self.shared.n_workers):
            w = self.shared.worker[i]
            if epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.port[port].fd, &event) < 0:
                raise OSError(errno, "epoll_ctl")

    def ignore(self, int port):
        """Stop receiving and watching; the published table no longer names the port."""
        cdef fp_worker* w
        store_int(&self.shared.link[port].open, 0)
        for i in range(self.shared.n_workers):
            w = self.shared.worker[i]
            epoll_ctl(w.epoll, EPOLL_CTL_DEL, w.port[port].fd, NULL)

    def remove_port(self, int port):
        """Forget a port that the workers have passed; its descriptors may be closed now.  Return their counters."""
        cdef fp_port* p
        for i in range(self.shared.n_workers):
            p = &self.shared.worker[i].port[port]
            p.count.rx_left = fp_empty(p.fd)
        counters = self.counters(port)
        for i in range(self.shared.n_workers):
            p = &self.shared.worker[i].port[port]
            p.fd = p.plain_fd = 0
        return counters

    def publish(self, int spread, ports, uint64_t can_transmit, uint64_t receives, queue_ids, int active,
                succession, uint32_t packets_per_slave, int policy, bint takeover, bint hold, uint32_t divert,
                bytes address, watch, bint dynamic, int64_t rebalance, speeds, macs, bint adaptive):
        """Make this the table of every later batch, in one step; return its generation."""
        cdef fp_table* t = <fp_table*>calloc(1, sizeof(fp_table))
        cdef fp_table* old
        if t is NULL:
            raise MemoryError
        t.generation = self.shared.table.generation + 1
        t.spread, t.active, t.packets_per_slave, t.policy = spread, active, packets_per_slave, policy
        t.takeover, t.hold, t.divert = takeover, hold, divert
        t.can_transmit, t.receives = can_transmit, receives
        for port in ports:
            t.port[t.n] = port
            t.n += 1
        for slave in succession:
            t.succession[t.n_succession] = slave
            t.n_succession += 1
        for slave, queue in enumerate(queue_ids):
            if 0 < queue < 256:
                t.queue_slave[queue] = slave + 1
        memcpy(t.address, <const uint8_t*>address, 6)
        fill_watch(&t.watch, watch)
        t.adaptive = adaptive
        t.dynamic, t.rebalance = dynamic, max(rebalance, <int64_t>MS)
        for slave, speed in enumerate(speeds):
            t.speed[slave] = speed
        for slave, mac in enumerate(macs):
            memcpy(t.mac[slave], <const uint8_t*><bytes>mac, 6)
        old = swap_table(&self.shared.table, t)
        old.older = self.retired
        self.retired = old
        self._free_retired()
        self._kick_workers()
        return t.generation

    cdef _free_retired(self):
        """Free the tables that no batch can hold any more."""
        cdef fp_table** link = &self.retired
        cdef fp_table* table
        while link[0] is not NULL and not self.passed(link[0].generation + 1):
            link = &link[0].older
        while link[0] is not NULL:
            table = link[0]
            link[0] = table.older
            free(table)

    cpdef bint passed(self, uint64_t generation):
        """Whether all workers have left every table older than this one."""
        cdef int i
        for i in range(self.shared.n_workers):
            if load_u64(&self.shared.worker[i].seen) < generation:
                return False
        return True

    def generation(self):
        """Of the newest published table."""
        return self.shared.table.generation

    def set_interval(self, int64_t ns, bint by_mii):
        """How often the watch polls, 0: never; whether by PHY registers first."""
        store_int(&self.shared.by_mii, by_mii)
        store_i64(&self.shared.interval, ns)
        fp_kick(self.shared.watch_kick)

    def set_busy_poll(self, int64_t ns):
        """How long workers look for frames before they sleep, 0: not at all."""
        store_i64(&self.shared.busy_poll, ns)

    def ask_for_frames(self):
        """Have the watch tell once when frames come by from now on; it looks when it polls."""
        store_u64(&self.shared.frames_then, frames_of(&self.shared))
        store_int(&self.shared.frames_asked, 1)

    def set_reading(self, int port, int carrier):
        """What control holds for a slave's carrier now: the watch tells only what differs."""
        store_int(&self.shared.link[port].reading, carrier)

    def poke(self, int port):
        """Have the watch read this slave's carrier now."""
        store_int(&self.shared.link[port].poked, 1)
        fp_kick(self.shared.watch_kick)

    # ── what control reads ──

    def news_fd(self):
        """Readable when `news()` or `diverted()` has something."""
        return self.shared.board.eventfd

    def news(self):
        """Take what worker and watch have told: (kind, ns, port, other port or None, carrier)."""
        cdef fp_board* b = &self.shared.board
        cdef fp_news item
        found = []
        fp_drain(b.eventfd)
        pthread_mutex_lock(&b.lock)
        while b.tail != b.head:
            item = b.item[b.tail % NEWS]
            b.tail += 1
            found.append((item.kind, item.at, item.port, None if item.other == NOBODY else item.other,
                          bool(item.carrier)))
        pthread_mutex_unlock(&b.lock)
        return found

    def expect_reports(self):
        """Have the next membership report told again: whoever calls this looks at the lists now."""
        for i in range(self.shared.n_workers):
            store_int(&self.shared.worker[i].reported, 0)

    def diverted(self):
        """Take the diverted frames, by time: (ns, port or NO_PORT where the host sends it, kind, first bytes)."""
        cdef fp_worker* w
        cdef fp_diverted* slot
        cdef uint32_t tail
        found = []
        for i in range(self.shared.n_workers):
            w = self.shared.worker[i]
            tail = w.divert_tail
            while tail != load_u32(&w.divert_head):
                slot = &w.divert[tail % DIVERT_RING]
                found.append((slot.at, slot.port, slot.kind, slot.bytes[:slot.length]))
                tail += 1
                store_u32(&w.divert_tail, tail)
        if self.shared.n_workers > 1:
            found.sort(key=lambda one: one[0])
        return found

    def counters(self, int port):
        """One slave's counters by name, as each worker has them."""
        cdef fp_port* p
        cdef const uint64_t* value
        cdef int i
        found = []
        for i in range(self.shared.n_workers):
            p = &self.shared.worker[i].port[port]
            p.count.rx_overrun += fp_take_overrun(p.fd)
            value = <const uint64_t*>&p.count
            found.append({name: value[k] for k, name in enumerate(COUNTERS)})
        return found

    def count_control(self, int port):
        """A frame of the bond's own was handed to this slave's NIC."""
        self.shared.worker[0].port[port].count.tx_control += 1

    def times(self, int port):
        """(first sent since it took over, last sent, last received) of a slave in monotonic ns, 0: never."""
        cdef fp_worker* w
        cdef fp_port* p
        cdef int64_t first = 0, last_tx = 0, last_rx = 0
        for i in range(self.shared.n_workers):
            w = self.shared.worker[i]
            p = &w.port[port]
            last_tx, last_rx = max(last_tx, p.last_tx), max(last_rx, p.last_rx)
            # A worker that has not followed yet may still hold the beginning of an earlier term.
            if p.first_tx and (not first or p.first_tx < first) and load_u64(&w.seen) == self.shared.table.generation:
                first = p.first_tx
        return first, last_tx, last_rx

    def backlog(self, int port):
        """The packets that wait for a slave, oldest first: (packet, whether others have a copy, worker).

        Only while nobody works.
        """
        cdef fp_backlog* b
        cdef uint32_t k
        found = []
        for i in range(self.shared.n_workers):
            b = &self.shared.worker[i].port[port].backlog
            for k in range(b.n):
                found.append(((<const char*>b.bytes)[b.offset[k]:b.offset[k] + b.length[k]], bool(b.copied >> k & 1),
                              i))
        return found

    def loads(self, int worker):
        """What one worker has counted in balance-tlb.

        (begun, unbalanced bytes, [(port, load)], [(port or FREE, sent, history)])
        """
        cdef fp_loads* l = &self._worker(worker).loads
        cdef int i
        return (l.at, l.unbalanced, [(i, l.load[i]) for i in range(LOAD_PORTS) if l.load[i]],
                [(l.slot[i].port, l.slot[i].sent, l.slot[i].history) for i in range(LOAD_SLOTS)])

    def recall_loads(self, int worker, int64_t at, uint64_t unbalanced, load, slots):
        """Have a worker go on with what another counted.  Before anybody works."""
        cdef fp_loads* l = &self._worker(worker).loads
        cdef int i
        l.at, l.unbalanced, l.able = at, unbalanced, ~<uint64_t>0
        for i, bytes_a_second in load:
            l.load[i] = bytes_a_second
        for i, (port, sent, history) in enumerate(slots[:LOAD_SLOTS]):
            l.slot[i].port, l.slot[i].sent, l.slot[i].history = port, sent, history

    def turn(self):
        """The round-robin counter."""
        return load_u32(&self.shared.turn)

    def recall(self, uint32_t turn, totals, seen_macs):
        """Go on with what another engine knew; `totals`: as `totals` returned them.  Before anybody works."""
        cdef fp_worker* w
        cdef bytes mac
        self.shared.turn = turn
        for i, counted in enumerate(totals):
            w = self._worker(i)
            w.tap_frames = counted.get("tap_frames", 0)
            w.tap_bytes = counted.get("tap_bytes", 0)
            w.no_slave = counted.get("no_slave", 0)
            w.tap_diverted = counted.get("tap_diverted", 0)
            w.runt = counted.get("runt", 0)
        for mac in seen_macs:
            remember_source(self.shared.worker[0], <const uint8_t*>mac)

    def recall_port(self, int port, counters, int64_t last_tx, int64_t last_rx, stamps, backlog):
        """The same for a port that was just added; packets of its backlog are sent when work begins."""
        cdef fp_port* p
        cdef uint64_t* value
        cdef fp_worker* w
        cdef uint32_t place
        cdef bytes packet
        for i, counted in enumerate(counters):
            w = self._worker(i)
            value = <uint64_t*>&w.port[port].count
            for k, name in enumerate(COUNTERS):
                value[k] = counted.get(name, 0)
        p = &self.shared.worker[0].port[port]
        p.last_tx, p.last_rx = last_tx, last_rx
        for form, slot, at in stamps:
            place = form if form < SEEN_ANSWER else SEEN_ANSWER + (form - SEEN_ANSWER) * SLOTS + slot
            if 0 < place < STAMPS and 0 <= slot < SLOTS:
                p.stamp[place] = at
        for packet, copied, worker in backlog:
            w = self._worker(worker % self.shared.n_workers)
            p = &w.port[port]
            if not backlog_add(p, <uint8_t*><char*>packet, len(packet), copied):
                p.count.tx_congested += 1
                continue
            p.backlog.waits = LINK
            p.backlog.since = fp_now()
            arm_retry(w)

    def heard(self, int port):
        """What was last seen when on a slave: [(form, slot, monotonic ns)] of all that ever was."""
        cdef fp_port* p
        cdef int64_t latest[STAMPS]
        cdef list found
        cdef int i, k
        memset(latest, 0, sizeof(latest))
        for i in range(self.shared.n_workers):
            p = &self.shared.worker[i].port[port]
            latest[SEEN_ANY] = max(latest[SEEN_ANY], p.last_rx)
            for k in range(1, STAMPS):
                latest[k] = max(latest[k], p.stamp[k])
        found = []
        for k in range(STAMPS):
            if latest[k]:
                found.append((*place_of(k), latest[k]))
        return found

    def waiting(self):
        """Frames that wait in the workers for a link or a MAC."""
        return sum(self.shared.worker[i].port[k].backlog.n for i in range(self.shared.n_workers) for k in range(MAX_SLAVES))

    def totals(self):
        """Each worker's own counters."""
        cdef fp_worker* w
        found = []
        for i in range(self.shared.n_workers):
            w = self.shared.worker[i]
            found.append({"tap_frames": w.tap_frames, "tap_bytes": w.tap_bytes, "no_slave": w.no_slave, "runt": w.runt,
                          "tap_diverted": w.tap_diverted})
        return found

    def standing_in(self):
        """Port number of the slave that a worker made provisionally active, or None."""
        cdef int port
        for i in range(self.shared.n_workers):
            port = load_int(&self.shared.worker[i].stand_in)
            if port >= 0:
                return port
        return None

    def crash(self):
        """Write where nothing may be written, as a fault in this file would.  For tests."""
        cdef volatile int* nowhere = NULL
        with nogil:
            nowhere[0] = 1

    def seen_macs(self):
        """Source MACs other than the bond's that were seen sending through it."""
        cdef uint32_t k
        cdef uint64_t mac
        found = {}
        for i in range(self.shared.n_workers):
            for k in range(SEEN):
                mac = load_u64(&self.shared.worker[i].seen_mac[k])
                if mac:
                    found[(<uint8_t*>&mac)[:6]] = True
        return list(found)


cdef void open_port(fp_port* p, int fd, int plain_fd):
    """Begin a port anew; what it had allocated stays."""
    memset(&p.count, 0, sizeof(p.count))
    memset(p.stamp, 0, sizeof(p.stamp))
    p.fd, p.plain_fd = fd, plain_fd
    p.first_tx = p.last_tx = p.last_rx = 0
    p.question = p.answered = 0
    p.answer = ALIVE


cdef tuple place_of(uint32_t i):
    """The form and the target's slot of a stamp."""
    if i < SEEN_ANSWER:
        return i, 0
    return SEEN_ANSWER + (i - SEEN_ANSWER) // SLOTS, (i - SEEN_ANSWER) % SLOTS


cdef fill_watch(fp_watch* w, watch):
    """Take over a `bond.evidence.Watch`, whose lists are no longer than there is room."""
    cdef uint32_t i
    cdef bytes address
    targets4, targets6, ours4, ours6, macs = watch
    w.on = bool(macs)
    w.n_target4, w.n_target6, w.n_own4, w.n_own6 = len(targets4), len(targets6), len(ours4), len(ours6)
    if max(w.n_target4, w.n_target6) > SLOTS or max(w.n_own4, w.n_own6) > OURS or len(macs) > MAX_SLAVES:
        raise ValueError("too many addresses to compare with")
    for i, address in enumerate(targets4):
        memcpy(&w.target4[i], <const char*>address, 4)
    for i, address in enumerate(ours4):
        memcpy(&w.own4[i], <const char*>address, 4)
    for i, address in enumerate(targets6):
        memcpy(w.target6[i], <const char*>address, 16)
    for i, address in enumerate(ours6):
        memcpy(w.own6[i], <const char*>address, 16)
    for i, address in enumerate(macs):
        memcpy(w.mac[i], <const char*>address, 6)


# ── for the tests: single stations on bytes ──────────────────────────────────────────

def put_tag_back(bytes packet, int tci, int tpid):
    """`packet` (virtio-net header and frame, up to NEAR bytes) with a VLAN tag put back after the MACs."""
    cdef uint8_t room[NEAR + HEADROOM]
    cdef size_t length = len(packet)
    cdef uint8_t* start
    if not VNET_LEN + ETH_LEN <= length <= NEAR:
        raise ValueError("packet too short or too long")
    memcpy(room + HEADROOM, <const uint8_t*><const char*>packet, length)
    start = vnet_put_tag_back(room + HEADROOM, tci, tpid)
    return start[:length + 4]


def frame_kind(bytes frame):
    """KIND_* of a frame, 0 for ordinary traffic."""
    return kind_of(<const uint8_t*><const char*>frame, len(frame))


def frame_is_igmp(bytes frame):
    """Whether balance-rr sends this frame on the active slave."""
    return bool(is_igmp(<const uint8_t*><const char*>frame, len(frame)))


def frame_is_membership_report(bytes frame):
    """Whether this frame, sent by the host, says that its groups have changed."""
    return bool(is_membership_report(<const uint8_t*><const char*>frame, len(frame)))

def frame_shows(bytes frame, watch, int slave):
    """[(form, slot)] of what a frame that arrives on a slave shows besides life."""
    cdef fp_watch w
    cdef int64_t stamp[STAMPS]
    cdef uint32_t i
    memset(stamp, 0, sizeof(stamp))
    fill_watch(&w, watch)
    see(stamp, &w, slave, <const uint8_t*><const char*>frame, len(frame), 1)
    return [place_of(i) for i in range(STAMPS) if stamp[i]]


def frame_is_balanced(bytes frame):
    """Whether balance-tlb may send this frame on any slave."""
    return bool(is_balanced(<const uint8_t*><const char*>frame, len(frame)))


def frame_is_balanced_to_all(bytes frame):
    """The hash by which balance-alb sends this frame on any slave, None if only the active one may."""
    cdef uint32_t hash = 0
    return hash if is_balanced_to_all(<const uint8_t*><const char*>frame, len(frame), &hash) else None


cdef class Balance:
    """The loads of balance-tlb alone, by a clock of the caller's."""

    cdef fp_loads loads

    def __cinit__(self):
        loads_begin(&self.loads)

    def rebalance(self, int64_t every, int active, int64_t now):
        """Count anew if `every` ns have passed; `active`: a port, or -1."""
        loads_rebalance(&self.loads, every, active, now)

    def release(self, uint64_t able):
        """Only these ports can transmit now; True if one of them could not before."""
        return bool(loads_release(&self.loads, able))

    def choose(self, uint32_t hash, bytes ports, speeds, uint32_t length):
        """The port for a frame, of those that can transmit; FREE if there is none."""
        cdef uint32_t speed[MAX_SLAVES]
        for i, each in enumerate(speeds):
            speed[i] = each
        return loads_choose(&self.loads, hash, len(ports), <const uint8_t*>ports, speed, length)

    def pass_by(self, uint32_t length):
        """A frame of this length was the active slave's."""
        self.loads.unbalanced += length


def frame_hash(bytes frame, int policy):
    """The transmit hash of a frame; `policy` as in `bond.hashing.HashPolicy`."""
    return xmit_hash(<const uint8_t*><const char*>frame, len(frame), policy)


def frame_hash_ns(list frames, int policy, uint32_t rounds):
    """ns per frame to hash `frames` (at most BATCH) `rounds` times over, as the worker would."""
    cdef const uint8_t* start[BATCH]
    cdef uint32_t length[BATCH]
    cdef uint32_t n = len(frames), i, k
    cdef volatile uint32_t hash
    cdef int64_t began
    cdef bytes frame
    if not 0 < n <= BATCH or not rounds:
        raise ValueError("from 1 to BATCH frames, and at least one round")
    for i in range(n):
        frame = frames[i]
        start[i] = frame
        length[i] = len(frame)
    with nogil:
        began = fp_now()
        for k in range(rounds):
            for i in range(n):
                hash = xmit_hash(start[i], length[i], policy)     # volatile: never left out
        began = fp_now() - began
    return began / (<double>rounds * n)
