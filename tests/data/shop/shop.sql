CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL, city VARCHAR(40), since DATE NOT NULL);
CREATE TABLE products (product_id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL, price DECIMAL(8,2) NOT NULL);
CREATE TABLE orders (order_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers(customer_id), product_id INTEGER NOT NULL REFERENCES products(product_id), quantity INTEGER NOT NULL, ordered DATE NOT NULL);
INSERT INTO customers VALUES (1, 'Ana Petrov', 'Lisbon', '2021-03-14'), (2, 'Brian O''Hara', 'Oslo', '2022-07-01'), (3, 'Chen Wei', NULL, '2022-11-30'), (4, 'Dora Klein', 'Lisbon', '2023-05-09');
INSERT INTO products VALUES (1, 'Baker''s twine', 3.50), (2, 'Teapot', 24.00), (3, 'Notebook', 6.25), (4, 'Lamp', 39.90);
INSERT INTO orders VALUES (1, 1, 2, 1, '2023-01-10'), (2, 1, 3, 4, '2023-02-02'), (3, 2, 1, 10, '2023-02-20'), (4, 4, 4, 1, '2023-06-01'), (5, 4, 3, 2, '2023-06-01'), (6, 2, 2, 2, '2023-09-15'), (7, 1, 1, 3, '2024-01-05');
