"""Receive load balancing of balance-alb: which client is told which slave's MAC.

The host's ARP frames are not sent by the worker but here: a reply gives the client the MAC of the
slave that he is to send to, a request leaves on the slave that will be his, but still names the bond's MAC,
as all who hear it would otherwise send there.  Those whom it leads away from their slaves are told
again, as is everybody whose slave has changed, by unicast ARP replies.

At most 256 clients are known, one for each xor of an address's bytes; who is pushed out sends to the
active slave from then on.  IPv4 only, and only what names a slave's MAC as its sender: a guest behind a
bridge has his own, and keeps it.

Source: bonding.rst, balance-alb.
"""

from __future__ import annotations

from functools import reduce
from operator import xor

from ubond.bond import modes
from ubond.bond.events import SendFrames
from ubond.bond.slave import Slave
from ubond.bond.state import Client, Clients, State
from ubond.bond.teaching import LEARNING
from ubond.bond.transaction import Transaction
from ubond.wire import (
    ARP_REPLY,
    ARP_REQUEST,
    Arp,
    Ethernet,
    MacAddr,
    WireError,
    arp_from,
    decode_arp,
    decode_ethernet,
    encode_arp,
    learning_frame,
)

#: How the log and the history name what is sent here.
ARP = "ARP for receive load balancing"
#: ns between two rounds of updates, and between a request and the round that it makes necessary.
PAUSE = 2_100_000_000
#: Rounds after the first one when a slave failed or MACs were swapped: a client may not hear one of them.
AGAIN = 3
#: ns for which a client may be deaf after a request: Linux takes no other MAC from a reply within a second of the last
#: word (its neighbour table's locktime).
DEAF = 1_500_000_000


def send(state: State, frame: bytes, out: Transaction) -> None:
    """Send an ARP frame of the host's: who speaks for one of its addresses is balanced, the rest is the sender's."""
    slave, balanced = state.sender, frame
    read = _read(frame)
    if read is not None and modes.rules(state).steers and _is_ours(state, read[1]):
        ethernet, arp = read
        known = arp.target_mac if arp.target_mac.is_valid_unicast else ethernet.dst
        mac = known if known.is_valid_unicast else None
        slave = _slave_for(state, arp, mac, ethernet.tags, out)
        if slave is None:
            slave = state.sender
        elif arp.op == ARP_REPLY:
            balanced = arp_from(frame, slave.mac, sender=True)
        else:
            balanced = arp_from(frame, slave.mac, sender=False)
            _hear_of_the_bond(state, arp.sender_ip, out.now)
    if slave is not None:
        out.frames.append(SendFrames(slave.name, (balanced,), ARP))


def heard(state: State, frame: bytes) -> None:
    """Take in an ARP frame that came in on whatever slave: where a client is, or that an address of ours is not."""
    read = _read(frame)
    if read is None or not modes.rules(state).steers:
        return
    arp, slots = read[1], state.clients.slots
    if not any(slave.mac == arp.sender_mac for slave in state.slaves):
        for at in [at for at, client in slots.items() if client.own == arp.sender_ip]:
            del slots[at]
    client = slots.get(_slot(arp.sender_ip))
    if arp.op != ARP_REPLY or client is None or (client.own, client.ip) != (arp.target_ip, arp.sender_ip):
        return
    if client.mac != arp.sender_mac and arp.sender_mac.is_valid_unicast:
        client.mac, client.stale = arp.sender_mac, True


def run(state: State, out: Transaction) -> None:
    """Give clients other slaves where theirs failed or more came, and tell those who have to know."""
    clients = state.clients
    if not (modes.rules(state).steers and state.up):
        _forget(state, out)
        return
    _follow(state, out)
    due = deadline(state)
    if due is None or out.now < due:
        return
    for client in clients.slots.values():
        if _is_to_be_told(client):
            assert client.slave is not None
            _tell(client, client.slave.name, client.slave.mac, out)
            client.stale = clients.again > 0
    clients.again = max(0, clients.again - 1)
    clients.not_before = out.now + PAUSE


def _forget(state: State, out: Transaction) -> None:
    """The mode has ended, or the bond: whoever sends to a slave's MAC must not go on with that."""
    clients = state.clients
    if clients.able or clients.slots:
        state.clients = Clients()
    if state.up and state.sender is not None:
        for client in clients.slots.values():
            _tell(client, state.sender.name, state.mac, out)


def deadline(state: State) -> int | None:
    """When the next round of updates is due (ns), None while everybody knows."""
    clients = state.clients
    return clients.not_before if any(map(_is_to_be_told, clients.slots.values())) else None


def _is_to_be_told(client: Client) -> bool:
    return client.stale and client.slave is not None and client.mac is not None


def _tell(client: Client, slave: str, mac: MacAddr, out: Transaction) -> None:
    """Tell a client, if it is known where he is, that our address is at this MAC."""
    if client.mac is not None:
        update = encode_arp(Arp(ARP_REPLY, mac, client.own, client.mac, client.ip), client.mac, client.tags)
        out.frames.append(SendFrames(slave, (update, update), ARP))


def _read(frame: bytes) -> tuple[Ethernet, Arp] | None:
    try:
        ethernet, arp = decode_ethernet(frame), decode_arp(frame)
    except WireError:
        return None
    return (ethernet, arp) if arp.op in (ARP_REQUEST, ARP_REPLY) else None


def _is_ours(state: State, arp: Arp) -> bool:
    """Whether the host speaks for an address of its own, under the MAC that a slave has."""
    return arp.sender_ip != bytes(4) and any(slave.mac == arp.sender_mac for slave in state.slaves)


def _slot(ip: bytes) -> int:
    return reduce(xor, ip)


def _slave_for(
    state: State, arp: Arp, mac: MacAddr | None, tags: tuple[tuple[int, int], ...], out: Transaction
) -> Slave | None:
    """The slave that the target of an ARP frame sends to; `mac`: where he is, if that is known."""
    clients = state.clients
    at = _slot(arp.target_ip)
    client = clients.slots.get(at)
    if client is not None and (client.own, client.ip) == (arp.sender_ip, arp.target_ip):
        client.mac, client.tags = mac or client.mac, tags
        if client.slave is not None:
            return client.slave
    elif client is not None and state.sender is not None and client.slave is not state.sender:
        _tell(client, state.sender.name, state.sender.mac, out)     # nobody will think of him any more
    slave = _next(state)
    if slave is not None:
        clients.slots[at] = Client(arp.sender_ip, arp.target_ip, mac, tags, slave, slave.mac, mac is not None)
    return slave


def _next(state: State) -> Slave | None:
    """The slave for the next client: the fastest, in turn where several are."""
    able = [slave for slave in state.slaves if slave.can_transmit]
    if not able:
        return None
    last = state.clients.last
    begin = state.slaves.index(last) + 1 if last in state.slaves else 0
    fastest = max(slave.speed for slave in able)
    order = state.slaves[begin:] + state.slaves[:begin]
    state.clients.last = next(slave for slave in order if slave in able and slave.speed == fastest)
    return state.clients.last


def _hear_of_the_bond(state: State, own: bytes, now: int) -> None:
    """A request leads all who hear it to the bond's MAC: tell them later whom they have."""
    clients = state.clients
    for client in clients.slots.values():
        if client.own == own and client.slave is not state.sender:
            client.stale = True
    if clients.not_before <= now:
        clients.not_before = now + PAUSE
    elif clients.not_before < now + DEAF:
        clients.again = max(clients.again, 1)   # the next round may come too soon for them


def _follow(state: State, out: Transaction) -> None:
    """See who failed, who came, and whose MAC is another."""
    clients = state.clients
    able = [slave for slave in state.slaves if slave.can_transmit]
    if state.sender not in able:
        for client in clients.slots.values():
            client.slave = client.slave if client.slave in state.slaves else None
        return      # until another is: it is he who teaches
    failed = [slave for slave in clients.able if slave not in able]
    came = any(slave not in clients.able for slave in able)
    clients.able = able
    for slave in failed:
        if slave in state.slaves:
            # Until its clients know better the sender takes what they send there.
            assert state.sender is not None
            out.frames.append(SendFrames(state.sender.name, (learning_frame(slave.mac),), LEARNING))
    moved = False
    for client in clients.slots.values():
        if came or client.slave not in able:
            client.slave = _next(state)
        mac = None if client.slave is None else client.slave.mac
        if mac is not None and mac != client.told:
            client.told, client.stale, moved = mac, True, True
    if moved and not came:
        clients.again, clients.not_before = AGAIN, out.now
