/* Stored documents as Python's own strings, and the rows of ids. retrievers/indexes/store.py has the format, and
 * _documents_numpy.py says what the arguments mean.
 *
 * Python's lock is kept while a few documents are read: they take some microseconds, and to hand the lock over takes longer. */

#include "_kernels.h"

#include <stdlib.h>
#include <string.h>

enum { ID, TITLE, METADATA, PLACE, TEXT, STORED }; /* as they are stored, after the ordinal and the lengths of all but the text */

enum { HEAD = 8 + TEXT * 4 };     /* bytes */
enum { FIELDS = 4 };              /* of a document for those who search */
enum { AHEAD = 8 };               /* cache lines of a document that are asked for before it is read */
enum { MANY = 64, PAGE = 4096 };  /* more rows are brought into memory first, others may go on meanwhile */

/* As they are given to Python: bit i of what is asked for. */
enum { GIVE_ID, GIVE_TEXT, GIVE_TITLE, GIVE_METADATA, GIVE_ORDINAL, GIVE_PLACE, GIVEN };

static const int stored_at[GIVEN] = {ID, TEXT, TITLE, METADATA, -1, PLACE};

typedef struct {
    const uint8_t *bytes;
    int64_t size;
    const uint8_t *starts; /* int64, perhaps misaligned */
    int64_t n;
} Records;

typedef struct {
    int64_t ordinal;
    const char *parts[STORED];
    int64_t lengths[STORED];
} Record;

static int64_t number_at(const uint8_t *at) {
    int64_t value;
    memcpy(&value, at, 8);
    return value;
}

/* The record of a row, 0 to n - 1. Returns 0, with an exception set, where what is there is none. */
static int record_at(const Records *records, int64_t row, Record *record) {
    const int64_t start = number_at(records->starts + 8 * row), end = number_at(records->starts + 8 * row + 8);
    int sound = start >= 0 && end >= HEAD && end <= records->size && start <= end - HEAD;
    if (sound) {
        const uint8_t *head = records->bytes + start;
        int64_t left = end - start - HEAD;
        const char *part = (const char *)head + HEAD;
        record->ordinal = number_at(head);
        for (int i = 0; i < TEXT && sound; i++) {
            uint32_t length;
            memcpy(&length, head + 8 + 4 * i, 4);
            sound = length <= left;
            if (sound) {
                record->parts[i] = part, record->lengths[i] = length;
                part += length, left -= length;
            }
        }
        record->parts[TEXT] = part, record->lengths[TEXT] = left;
        sound = sound && record->lengths[ID] > 0; /* no id is empty, and a page of zeros is no document */
    }
    if (!sound)
        PyErr_Format(PyExc_ValueError, "holds no document in row %lld", (long long)row);
    return sound;
}

static int take_buffers(const Py_buffer *bytes, const Py_buffer *starts, Records *records) {
    *records = (Records){bytes->buf, bytes->len, starts->buf, starts->len / 8 - 1};
    if (starts->len % 8 != 0 || records->n < 0) {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
        return 0;
    }
    return 1;
}

/* One part of a record as Python has it, or NULL with an exception set. */
static PyObject *give(const Record *record, int part, int64_t row) {
    if (part == GIVE_ORDINAL)
        return PyLong_FromLongLong(record->ordinal);
    const int at = stored_at[part];
    PyObject *text = PyUnicode_DecodeUTF8(record->parts[at], (Py_ssize_t)record->lengths[at], NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "holds no document in row %lld", (long long)row);
    }
    return text;
}

static PyObject *read_row(const Records *records, int64_t row, int parts) {
    Record record;
    if (!record_at(records, row, &record))
        return NULL;
    int count = 0;
    for (int part = 0; part < GIVEN; part++)
        count += parts >> part & 1;
    PyObject *read = PyTuple_New(count);
    for (int part = 0, at = 0; part < GIVEN && read != NULL; part++)
        if (parts >> part & 1) {
            PyObject *value = give(&record, part, row);
            if (value == NULL || PyTuple_SetItem(read, at++, value) < 0) {
                Py_DECREF(read);
                return NULL;
            }
        }
    return read;
}

/* Read a byte of each page of these rows: what is not in memory yet comes from the disk. */
static void touch(const Records *records, const int64_t *rows, Py_ssize_t count) {
    uint8_t all = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        const int64_t start = number_at(records->starts + 8 * rows[i]), end = number_at(records->starts + 8 * rows[i] + 8);
        for (int64_t at = start; start >= 0 && at < end && end <= records->size; at += PAGE)
            all |= records->bytes[at];
    }
    *(volatile uint8_t *)&all = all;
}

/* The rows of a list, or NULL with an exception set. Asks the memory for what is read of each, all at once: they lie far
 * apart, and one after the other they would be waited for. */
static int64_t *take_rows(const Records *records, PyObject *list, Py_ssize_t count) {
    int64_t *rows = malloc((size_t)(count + 1) * sizeof *rows);
    if (rows == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *number = PyList_GetItem(list, i); /* NULL where the list has grown shorter */
        rows[i] = number == NULL ? -1 : (int64_t)PyLong_AsLongLong(number);
        if (PyErr_Occurred() || rows[i] < 0 || rows[i] >= records->n) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "lacks row %lld", (long long)rows[i]);
            free(rows);
            return NULL;
        }
        PREFETCH(records->starts + 8 * rows[i]);
    }
    if (count > MANY) {
        Py_BEGIN_ALLOW_THREADS
        touch(records, rows, count);
        Py_END_ALLOW_THREADS
        return rows;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const int64_t start = number_at(records->starts + 8 * rows[i]);
        for (int line = 0; line < AHEAD && start >= 0 && start < records->size; line++)
            PREFETCH(records->bytes + start + 64 * line);
    }
    return rows;
}

/* documents_read(records, starts, rows, parts) -> a tuple for each row */
PyObject *documents_read(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer bytes, starts;
    PyObject *list, *read = NULL;
    int parts;
    if (!PyArg_ParseTuple(arguments, "y*y*O!i", &bytes, &starts, &PyList_Type, &list, &parts))
        return NULL;
    Records records;
    const Py_ssize_t count = PyList_Size(list);
    int64_t *rows = take_buffers(&bytes, &starts, &records) ? take_rows(&records, list, count) : NULL;
    if (rows != NULL)
        read = PyList_New(count);
    for (Py_ssize_t i = 0; i < count && read != NULL; i++) {
        PyObject *row = read_row(&records, rows[i], parts);
        if (row == NULL || PyList_SetItem(read, i, row) < 0) {
            Py_DECREF(read);
            read = NULL;
        }
    }
    free(rows);
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&starts);
    return read;
}

/* Set the attributes of a new document, which is frozen for everybody else. Returns 0, or -1 with an exception set. */
static int fill_document(PyObject *document, const Record *record, int64_t row, PyObject *number, PyObject *parse,
                         PyObject *const *names) {
    static const int parts[] = {GIVE_ID, GIVE_TEXT, GIVE_TITLE, GIVE_METADATA};
    for (int i = 0; i < FIELDS; i++) {
        PyObject *value;
        if (parts[i] == GIVE_METADATA && record->lengths[METADATA] == 0)
            value = PyDict_New();
        else
            value = give(record, parts[i], row);
        if (value != NULL && parts[i] == GIVE_METADATA && record->lengths[METADATA] > 0) {
            PyObject *packed = value;
            value = PyObject_CallFunctionObjArgs(parse, number, packed, NULL);
            Py_DECREF(packed);
        }
        if (value == NULL)
            return -1;
        const int status = PyObject_GenericSetAttr(document, names[i], value);
        Py_DECREF(value);
        if (status < 0)
            return -1;
    }
    return 0;
}

/* documents_made(records, starts, rows, kind, parse) -> the document of each row, by row */
PyObject *documents_made(PyObject *module, PyObject *arguments) {
    (void)module;
    static const char *const named[FIELDS] = {"id", "text", "title", "metadata"};
    Py_buffer bytes, starts;
    PyObject *list, *kind, *parse, *made = NULL, *names[FIELDS] = {NULL};
    if (!PyArg_ParseTuple(arguments, "y*y*O!O!O", &bytes, &starts, &PyList_Type, &list, &PyType_Type, &kind, &parse))
        return NULL;
    Records records;
    const Py_ssize_t count = PyList_Size(list);
    int64_t *rows = take_buffers(&bytes, &starts, &records) ? take_rows(&records, list, count) : NULL;
    int failed = rows == NULL;
    for (int i = 0; i < FIELDS && !failed; i++)
        failed = (names[i] = PyUnicode_InternFromString(named[i])) == NULL;
    if (!failed)
        failed = (made = PyDict_New()) == NULL;
    for (Py_ssize_t i = 0; i < count && !failed; i++) {
        Record record;
        PyObject *number = PyLong_FromLongLong(rows[i]);
        PyObject *document = number == NULL || !record_at(&records, rows[i], &record) ? NULL : PyType_GenericAlloc((PyTypeObject *)kind, 0);
        failed = document == NULL || fill_document(document, &record, rows[i], number, parse, names) < 0 ||
                 PyDict_SetItem(made, number, document) < 0;
        Py_XDECREF(document);
        Py_XDECREF(number);
    }
    if (failed) {
        Py_XDECREF(made);
        made = NULL;
    }
    for (int i = 0; i < FIELDS; i++)
        Py_XDECREF(names[i]);
    free(rows);
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&starts);
    return made;
}

/* The sign of the order of two ids: by their bytes, which is by code points. */
static int compare(const Record *record, const char *id, int64_t length) {
    const int64_t shorter = record->lengths[ID] < length ? record->lengths[ID] : length;
    const int order = shorter > 0 ? memcmp(record->parts[ID], id, (size_t)shorter) : 0;
    return order != 0 ? order : (record->lengths[ID] > length) - (record->lengths[ID] < length);
}

/* The row of an id, -1 where there is none, or -2 with an exception set. */
static int64_t find_row(const Records *records, PyObject *id) {
    Py_ssize_t length;
    const char *wanted = PyUnicode_AsUTF8AndSize(id, &length);
    if (wanted == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
            return -2;
        PyErr_Clear(); /* no document has such an id */
        return -1;
    }
    int64_t low = 0, high = records->n;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        Record record;
        if (!record_at(records, middle, &record))
            return -2;
        const int order = compare(&record, wanted, length);
        if (order == 0)
            return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

/* documents_find(records, starts, ids) -> the row of each id, or -1 */
PyObject *documents_find(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer bytes, starts;
    PyObject *ids, *found = NULL;
    if (!PyArg_ParseTuple(arguments, "y*y*O!", &bytes, &starts, &PyList_Type, &ids))
        return NULL;
    Records records;
    const Py_ssize_t count = PyList_Size(ids);
    if (take_buffers(&bytes, &starts, &records))
        found = PyList_New(count);
    for (Py_ssize_t i = 0; i < count && found != NULL; i++) {
        PyObject *id = PyList_GetItem(ids, i);
        const int64_t row = id == NULL ? -2 : find_row(&records, id);
        PyObject *number = row == -2 ? NULL : PyLong_FromLongLong(row);
        if (number == NULL || PyList_SetItem(found, i, number) < 0) {
            Py_DECREF(found);
            found = NULL;
        }
    }
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&starts);
    return found;
}
