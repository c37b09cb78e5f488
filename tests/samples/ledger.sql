-- Written by commit ed744f7 (2026-11-25): a TIFF, an MRC file, a tilt series of two, and one that was damaged.
PRAGMA application_id = 1162699877;
PRAGMA user_version = 4;
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
        updated REAL NOT NULL, sections INTEGER NOT NULL DEFAULT 0, verdict TEXT, facts TEXT NOT NULL DEFAULT '{}',
        UNIQUE (path, revision)
    );
INSERT INTO "jobs" VALUES(1,X'6C6F772F612E746966',1,8448,'1795993305322094686','069b1ac6a5bd96ab3312bd887d78719c72a6108b1437d150ef4e0a276911c7b1','done',0,1,0.0,NULL,'64 x 64 pixels are fewer than the network was trained on','low','{"prepare": 0.0448, "read": 0.5891, "network": 0.3549, "judge": 0.0743, "write": 0.758}',X'2F746D702F656D64656E6F697365642D73616D706C652F6F75747075742F6C6F772F612E746966',1.79599333679304933551e+09,1.79599333882751059534e+09,0,'check','{"dose": 20.046886446886447, "shape": [64, 64], "pixel_size": {"y": 0.9999999999999999, "x": 0.9999999999999999, "unit": "nm"}, "spikes": 1, "reasons": ["64 x 64 pixels are fewer than the network was trained on"], "backend": "cpu: ONNX Runtime 1.32.0, float32, 1 threads"}');
INSERT INTO "jobs" VALUES(2,X'6772696420322F622E6D7263',1,17408,'1795993305324157916','b7cb330dba93fe593887eff7beb1d816530c90abd73d30af276f1fb64cf3d11c','done',0,1,0.0,NULL,'64 x 64 pixels are fewer than the network was trained on; the pixel values are not plain counts: their noise fits 1.5 units per count if the value 0 is no count (the brightness varies too little to tell), which was used; state gain and offset in a profile if you know them','auto','{"prepare": 0.1618, "read": 0.4099, "network": 0.4013, "judge": 0.0732, "write": 0.3167}',X'2F746D702F656D64656E6F697365642D73616D706C652F6F75747075742F6772696420322F622E6D7263',1.79599333685556054114e+09,1.79599333925949501992e+09,0,'check','{"dose": 113.3494219443472, "shape": [64, 64], "pixel_size": {"y": 1.2000000476837158, "x": 1.2000000476837158, "unit": "angstrom"}, "spikes": 0, "reasons": ["64 x 64 pixels are fewer than the network was trained on"], "backend": "cpu: ONNX Runtime 1.32.0, float32, 1 threads"}');
INSERT INTO "jobs" VALUES(3,X'74696C742E7374',1,17408,'1795993305363719636','9f2425629d5f659b9df4710e8c064abd009a3a3aeb6dbfd61be9dec88c774598','done',0,0,0.0,NULL,'64 x 64 pixels are fewer than the network was trained on','auto','{"prepare": 0.0089, "network": 0.1648, "judge": 0.0564, "write": 0.2779}',X'2F746D702F656D64656E6F697365642D73616D706C652F6F75747075742F74696C742E73303030322E7374',1795993336.85604,1.79599334028109622004e+09,2,'check','{"dose": 20.077880859375, "shape": [64, 64], "pixel_size": null, "spikes": 0, "reasons": ["64 x 64 pixels are fewer than the network was trained on"], "backend": "cpu: ONNX Runtime 1.32.0, float32, 1 threads"}');
INSERT INTO "jobs" VALUES(4,X'62726F6B656E2E746966',1,54,'1795993305366989898',NULL,'quarantined',0,0,0.0,'the file ends at byte 54, its directory needs 2021161082; it has not changed for 60 s: copy it again',NULL,NULL,'{}',NULL,1.79599339681269574162e+09,1.79599339681269574162e+09,0,NULL,'{}');
CREATE TABLE tally (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "tally" VALUES('done',3);
INSERT INTO "tally" VALUES('pending',0);
INSERT INTO "tally" VALUES('quarantined',1);
INSERT INTO "tally" VALUES('retry',0);
INSERT INTO "tally" VALUES('running',0);
CREATE INDEX waiting ON jobs (live, id) WHERE state = 'pending';
CREATE INDEX retrying ON jobs (not_before) WHERE state = 'retry';
CREATE INDEX outcomes ON jobs (state, updated);
CREATE INDEX latest ON jobs (updated);
CREATE TRIGGER job_came AFTER INSERT ON jobs BEGIN
        UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
    END;
CREATE TRIGGER job_went AFTER DELETE ON jobs BEGIN
        UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
    END;
CREATE TRIGGER job_moved AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
        UPDATE tally SET jobs = jobs - 1 WHERE state = old.state;
        UPDATE tally SET jobs = jobs + 1 WHERE state = new.state;
    END;
CREATE INDEX verdicts ON jobs (verdict, updated) WHERE verdict IS NOT NULL;
COMMIT;
