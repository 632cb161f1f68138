//! Lanes that are added, and those that cannot be.

use super::lanes::{Striped, source};
use super::*;
use crate::tunnel::userspace::growth::Growth;
use crate::tunnel::userspace::meter::Meter;

#[test]
fn a_busy_port_of_a_further_lane_is_told_and_tried_again() {
    let (low, _) = keys();
    let a = Striped::start(low, 1);
    let busy = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut source = source(low);
    source.ports.insert(2, busy.local_addr().unwrap().port());
    let lack = Arc::clone(&source.lack);
    let told = || lack.lock().unwrap().clone();
    let stripes = a.gateway.tunnel.stripes();
    a.gateway
        .tunnel
        .grow(Plan::Fixed(3), Box::new(source))
        .unwrap();
    assert_eq!(*stripes.borrow(), 2);
    let what = told().expect("a complaint");
    assert!(what.starts_with("2 of 3 stripes: UDP port"), "{what}");
    drop(busy);
    let start = Instant::now();
    while *stripes.borrow() < 3 {
        assert!(start.elapsed() < 4 * SOON, "not tried again");
        thread::sleep(Duration::from_millis(50));
    }
    eventually("no complaint", || told().is_none());
}

#[test]
fn a_driver_that_may_not_grow_stays_as_it_is() {
    let (low, _) = keys();
    let a = Striped::start(low, 1);
    let plan = Plan::Auto { most: 1 };
    a.gateway.tunnel.grow(plan, Box::new(source(low))).unwrap();
    assert_eq!(*a.gateway.tunnel.stripes().borrow(), 1);
    assert!(
        a.gateway.tunnel.growth.lock().unwrap().is_none(),
        "no thread"
    );
    // A device of one queue takes no lane; the gateway works without.
    let lack = Arc::new(Mutex::new(None));
    let b = Gateway::start([9; 32], 2, 0);
    let mut one = source([9; 32]);
    one.lack = Arc::clone(&lack);
    b.tunnel.grow(Plan::Fixed(2), Box::new(one)).unwrap();
    let what = lack.lock().unwrap().clone().expect("a complaint");
    assert!(what.contains("made with one queue only"), "{what}");
}

#[test]
fn a_full_lane_gets_company_that_is_open_before_it_is_told() {
    let (low, _) = keys();
    let a = Striped::start(low, 1);
    let driver = &a.gateway.tunnel.driver;
    let plan = Plan::Auto { most: 2 };
    let mut growth = Growth::new(Arc::clone(driver), plan, Box::new(source(low)));
    let stripes = a.gateway.tunnel.stripes();
    let (start, lane) = (Instant::now(), driver.shared.lanes()[0].clone());
    // As if its sender had to wait for room all the time; no packets come, so its threads note nothing themselves.
    for second in 0..60 {
        let now = Duration::from_secs(second);
        Meter::new(&lane.threads[0]).note(start + now, || now);
        growth.look(now);
        assert_eq!(
            *stripes.borrow(),
            if second < 12 { 1 } else { 2 },
            "after {now:?}"
        );
        growth.open();
        assert_eq!(driver.lanes(), usize::from(*stripes.borrow()));
    }
}
