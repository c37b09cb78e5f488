-- Written by the first version that landed (its own code, 2026-11): one job in each state, names that are not UTF-8.
PRAGMA application_id = 1162699877;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        path BLOB NOT NULL,
        revision INTEGER NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns TEXT NOT NULL,
        sha256 TEXT,
        state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'retry', 'done', 'quarantined')),
        live INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        not_before REAL NOT NULL DEFAULT 0,
        error TEXT,
        warning TEXT,
        profile TEXT,
        timings TEXT NOT NULL DEFAULT '{}',
        output BLOB,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        UNIQUE (path, revision)
    );
INSERT INTO "jobs" VALUES(1,X'646F6E652E746966',1,1000,'1759999999000000000','abababababababababababababababababababababababababababababababab','done',1,1,0.0,NULL,'ends in zeros','low','{"read": 0.1}',X'2F6F75742F646F6E652E746966',1760000001.0,1760000024.0);
INSERT INTO "jobs" VALUES(2,X'6C6F772F77C3A472656E20FF2E746966',1,1001,'1759999999000000001','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','done',0,1,0.0,NULL,NULL,'auto','{}',X'2F6F75742F6C6F772F77C3A472656E20FF2E746966',1760000002.0,1760000026.0);
INSERT INTO "jobs" VALUES(3,X'62726F6B656E2E746966',1,1002,'1759999999000000002',NULL,'quarantined',1,1,0.0,'broken.tif: damaged',NULL,NULL,'{}',NULL,1760000003.0,1760000027.0);
INSERT INTO "jobs" VALUES(4,X'72657472792E746966',1,1003,'1759999999000000003',NULL,'retry',1,1,1760000033.0,'locked',NULL,NULL,'{}',NULL,1760000004.0,1760000029.0);
INSERT INTO "jobs" VALUES(5,X'72756E6E696E672E746966',1,1004,'1759999999000000004',NULL,'running',1,1,0.0,NULL,NULL,NULL,'{}',NULL,1760000005.0,1760000011.0);
INSERT INTO "jobs" VALUES(6,X'77616974732E746966',1,1005,'1759999999000000005',NULL,'pending',0,0,0.0,NULL,NULL,NULL,'{}',NULL,1760000006.0,1760000030.0);
INSERT INTO "jobs" VALUES(7,X'776169747320746F6F2E746966',1,1006,'1759999999000000006',NULL,'pending',1,0,0.0,NULL,NULL,NULL,'{}',NULL,1760000007.0,1760000031.0);
INSERT INTO "jobs" VALUES(8,X'646F6E652E746966',2,2000,'5',NULL,'pending',1,0,0.0,NULL,NULL,NULL,'{}',NULL,1760000032.0,1760000032.0);
CREATE INDEX waiting ON jobs (live, id) WHERE state = 'pending';
CREATE INDEX retrying ON jobs (not_before) WHERE state = 'retry';
CREATE INDEX outcomes ON jobs (state, updated);
CREATE INDEX latest ON jobs (updated);
COMMIT;
