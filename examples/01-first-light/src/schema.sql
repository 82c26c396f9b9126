-- The service that takes orders.
create table customer (id int primary key, orders bigint not null default 0);
insert into customer (id) select generate_series(1, 500);
create table orders (
    id bigint generated always as identity primary key,
    customer int not null references customer,
    -- The customer's first order is 1, the second 2: the order that must survive the journey.
    number bigint not null,
    unique (customer, number)
);

-- The service that ships them. It would have a database of its own; one is enough to see the loop.
create table shipment (
    order_id bigint not null,
    customer int not null,
    number bigint not null
);
create table shipped (
    customer int primary key,
    last_number bigint not null,
    violations bigint not null default 0
);
